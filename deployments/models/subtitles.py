"""Subtitles in both formats that players read. Source: WebVTT (W3C); SubRip has no standard, its times have commas."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Subtitle:
    """Some words on one line and when they are shown. Units: milliseconds from the beginning."""

    start_ms: int
    end_ms: int
    text: str


def srt(subtitles: Iterable[Subtitle]) -> bytes:
    """Return subtitles as a SubRip file."""
    return "".join(
        f"{number}\n{_clock(each.start_ms, ',')} --> {_clock(each.end_ms, ',')}\n{each.text}\n\n"
        for number, each in enumerate(subtitles, 1)
    ).encode()


def vtt(subtitles: Iterable[Subtitle], note: str = "") -> bytes:
    """Return subtitles as a WebVTT file, with a note for whoever opens it."""
    head = f"WEBVTT\n\nNOTE {note}\n\n" if note else "WEBVTT\n\n"
    return (
        head
        + "".join(
            f"{_clock(each.start_ms, '.')} --> {_clock(each.end_ms, '.')}\n{_escaped(each.text)}\n\n"
            for each in subtitles
        )
    ).encode()


def one_line(text: str) -> str:
    """Return words without what would end a subtitle's block or look like its times."""
    printed = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(printed.replace("\ufffd", "").replace("-->", "→").split())


def _clock(at_ms: int, point: str) -> str:
    """Write a time as subtitles do: hours, minutes, seconds, milliseconds."""
    seconds, milli = divmod(at_ms, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{milli:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
