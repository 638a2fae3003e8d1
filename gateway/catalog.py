"""What is sold and for how much: the operator's `catalog.yaml`, read strictly, and the quotes made from it.

A quote is pure integer arithmetic, rounded up once to a whole token, and keeps the version of its price.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.errors import UnknownTask
from kit.errors import InvalidRequest
from payments.packages import Package

CATALOG_FILE: Final = Path(__file__).with_name("catalog.yaml")
"""The file that comes with the code; an operator edits it in place."""
TOKENS_PER_CREDIT: Final = 100
"""The two published documents speak credits and tokens of the same money."""
MILLI: Final = 1000
"""Units are counted in thousandths: no unit on sale is measured finer, and integers stay exact."""
FILE_VERSIONS: Final = 1000
"""How far the file's own price versions go; an operator's announced prices are numbered from there on."""
UNITS_MILLI: Final = {"image": MILLI}
"""How much of its unit one job of a task takes: a picture job makes one picture."""


class CatalogError(ValueError):
    """The catalogue file cannot be used; the text names the place and the fault."""


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of job on sale. Units: `tokens_per_unit` tokens."""

    name: str
    tool: str
    application: str
    model: str
    licence: str
    unit: str
    tokens_per_unit: int
    summary: str
    price_version: int


@dataclass(frozen=True, slots=True)
class Quote:
    """What a job will cost at most. Units: `units_milli` thousandths of the task's unit."""

    cost_tokens: int
    units_milli: int
    tool: str
    application: str
    price_version: int


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything on sale under one version of the prices."""

    price_version: int
    since: date
    packages: Mapping[str, Package]
    tasks: Mapping[str, Task]

    def package(self, code: str) -> Package:
        """Return a package by its code. Raises: InvalidRequest, naming the codes on sale."""
        if code not in self.packages:
            raise InvalidRequest("packageCode", f"unknown package; on sale are {', '.join(self.packages)}")
        return self.packages[code]

    def task(self, name: str) -> Task:
        """Return a task by its name. Raises: UnknownTask, naming the tasks on sale."""
        if name not in self.tasks:
            raise UnknownTask(name[:100], list(self.tasks))
        return self.tasks[name]

    def quote(self, task: str, job_input: Mapping[str, Any]) -> Quote:  # noqa: ARG002
        """Return the most that this job can cost. Raises: UnknownTask."""
        offer = self.task(task)
        units_milli = UNITS_MILLI[offer.unit]
        return Quote(
            cost_tokens=cost_tokens(units_milli, offer.tokens_per_unit),
            units_milli=units_milli,
            tool=offer.tool,
            application=offer.application,
            price_version=offer.price_version,
        )


def cost_tokens(units_milli: int, tokens_per_unit: int) -> int:
    """Return the price of some thousandths of a unit, rounded up to a whole token."""
    return -(-units_milli * tokens_per_unit // MILLI)


def load_catalog(path: Path = CATALOG_FILE) -> Catalog:
    """Read the catalogue. Raises: CatalogError for what is missing, misspelt or of the wrong kind."""
    try:
        written = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)  # noqa: S506  # a SafeLoader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CatalogError(f"{path}: {error}") from error
    try:
        file = _File.model_validate(written)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']}" for item in error.errors()]
        raise CatalogError(f"{path}: " + "; ".join(lines)) from error
    codes = [package.code for package in file.packages]
    if twice := sorted({code for code in codes if codes.count(code) > 1}):
        raise CatalogError(f"{path}: packages: the code {twice[0]} appears twice")
    return Catalog(
        price_version=file.price_version,
        since=file.since,
        packages={
            package.code: Package(
                package.code,
                package.name,
                package.credits * TOKENS_PER_CREDIT,
                package.price_minor,
                package.currency,
            )
            for package in file.packages
        },
        tasks={
            name: Task(name=name, price_version=file.price_version, **task.model_dump())
            for name, task in file.tasks.items()
        },
    )


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses a key written twice: YAML would keep the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, name in enumerate(names):
            if name in names[:place]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {name!r} appears twice", node.value[place][0].start_mark
                )
        return super().construct_mapping(node, deep)


_Text = Annotated[str, Field(min_length=1, max_length=200)]
_Amount = Annotated[int, Field(gt=0, le=10**12)]
"""Far above any price and far below the 64 bits of the books."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Package(_Strict):
    code: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")]
    name: _Text
    credits: _Amount
    price_minor: _Amount
    currency: Annotated[str, Field(pattern=r"^[a-z]{3}$")]


class _Task(_Strict):
    tool: _Text
    application: _Text
    model: _Text
    licence: _Text
    unit: Annotated[str, Field(pattern=rf"^({'|'.join(UNITS_MILLI)})$")]
    tokens_per_unit: _Amount
    summary: _Text


class _File(_Strict):
    price_version: Annotated[int, Field(ge=1, le=FILE_VERSIONS)]
    since: date
    packages: Annotated[list[_Package], Field(min_length=1)]
    tasks: Annotated[dict[str, _Task], Field(min_length=1)]
