"""What is sold and for how much: the operator's `catalog.yaml`, read strictly, and the quotes made from it.

A tool is priced by its unit; a task is a kind of job and takes its price from its tool. A quote is pure integer
arithmetic, rounded up once to a whole token, and keeps the version of its price.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from gateway.errors import UnknownTask
from gateway.quantities import MILLI, QUANTITIES
from kit.errors import InvalidRequest
from ledger.transfers import Kind
from payments.currencies import CARD_STEP_MINOR, chargeable
from payments.packages import Package

CATALOG_FILE: Final = Path(__file__).with_name("catalog.yaml")
"""The file that comes with the code; an operator edits it in place."""
TOKENS_PER_CREDIT: Final = 100
"""The two published documents speak credits and tokens of the same money."""
FILE_VERSIONS: Final = 1000
"""How far the file's own price versions go; an operator's announced prices are numbered from there on."""
CONSUME: Final = "consume"
"""The tool under which `credits/consume` is booked. It has no price of its own and is not on sale."""
RESERVED_TOOLS: Final = frozenset({CONSUME, *get_args(Kind)})
"""Names under which the books keep other movements: their references would meet those of a tool."""


class CatalogError(ValueError):
    """The catalogue file cannot be used; the text names the place and the fault."""


@dataclass(frozen=True, slots=True)
class Price:
    """What work costs: `tokens` for each `per_units` units, under a version of the prices."""

    tokens: int
    per_units: int
    version: int

    def cost_tokens(self, units_milli: int) -> int:
        """Return the cost of some thousandths of a unit, rounded up to a whole token."""
        return -(-units_milli * self.tokens // (self.per_units * MILLI))


@dataclass(frozen=True, slots=True)
class Tool:
    """Work on sale by its unit: called through the API, or done by the jobs of its tasks."""

    name: str
    unit: str
    price: Price
    model: str
    licence: str
    since: date

    @property
    def price_text(self) -> str:
        """Say the price for people, such as '1 token per 100 characters'."""
        tokens, per = self.price.tokens, self.price.per_units
        paid = "1 token" if tokens == 1 else f"{tokens} tokens"
        return f"{paid} per {self.unit}" if per == 1 else f"{paid} per {per} {self.unit}s"


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of job on sale, at the price of its tool."""

    name: str
    tool: Tool
    application: str
    summary: str


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
    tools: Mapping[str, Tool]
    tasks: Mapping[str, Task]

    def package(self, code: str) -> Package:
        """Return a package by its code. Raises: InvalidRequest, naming the codes on sale."""
        if code not in self.packages:
            raise InvalidRequest("packageCode", f"unknown package; on sale are {', '.join(self.packages)}")
        return self.packages[code]

    def tool(self, name: str) -> Tool:
        """Return a tool by its name. Raises: InvalidRequest, naming the tools on sale."""
        if name not in self.tools:
            raise InvalidRequest("tool", f"unknown tool; on sale are {', '.join(self.tools)}")
        return self.tools[name]

    def task(self, name: str) -> Task:
        """Return a task by its name. Raises: UnknownTask, naming the tasks on sale."""
        if name not in self.tasks:
            raise UnknownTask(name[:100], list(self.tasks))
        return self.tasks[name]

    def quote(self, task: str, job_input: Mapping[str, Any]) -> Quote:
        """Return the most that this job can cost. Raises: UnknownTask."""
        offer = self.task(task)
        units_milli = QUANTITIES[task].units_milli(job_input)
        price = offer.tool.price
        return Quote(
            cost_tokens=price.cost_tokens(units_milli),
            units_milli=units_milli,
            tool=offer.tool.name,
            application=offer.application,
            price_version=price.version,
        )


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
    for package in file.packages:
        if not chargeable(package.price_minor, package.currency):
            raise CatalogError(
                f"{path}: packages: {package.code}: cards pay {package.currency} in steps of {CARD_STEP_MINOR}"
            )
    if twice := sorted({code for code in codes if codes.count(code) > 1}):
        raise CatalogError(f"{path}: packages: the code {twice[0]} appears twice")
    tools = {name: tool.priced(name, file.price_version) for name, tool in file.tools.items()}
    for name, task in file.tasks.items():
        if task.tool not in tools:
            raise CatalogError(f"{path}: tasks.{name}.tool: no tool is called {task.tool}")
        if name not in QUANTITIES:
            raise CatalogError(f"{path}: tasks.{name}: no such task; there are {', '.join(QUANTITIES)}")
        if (unit := tools[task.tool].unit) != QUANTITIES[name].unit:
            raise CatalogError(f"{path}: tasks.{name}.tool: its jobs are not counted by the {unit}")
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
                file.price_version,
            )
            for package in file.packages
        },
        tools=tools,
        tasks={
            name: Task(name, tools[task.tool], task.application, task.summary)
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


class _Tool(_Strict):
    unit: Literal["turn", "image", "second", "minute", "character"]
    tokens: Annotated[int, Field(gt=0, le=10**6)]
    """Times the most units of one request (10^9) it is a thousandth of what the books' 64 bits hold."""
    per_units: Literal[1, 10, 100, 1000] = 1
    """Powers of ten: the price of one unit is then a short decimal."""
    model: _Text
    licence: _Text
    since: date

    def priced(self, name: str, version: int) -> Tool:
        return Tool(
            name, self.unit, Price(self.tokens, self.per_units, version), self.model, self.licence, self.since
        )


def _sellable(name: str) -> str:
    if name in RESERVED_TOOLS:
        raise ValueError("the books use this name for something else")
    return name


_ToolName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.]{0,63}$"), AfterValidator(_sellable)]


class _Task(_Strict):
    tool: _Text
    application: _Text
    summary: _Text


class _File(_Strict):
    price_version: Annotated[int, Field(ge=1, le=FILE_VERSIONS)]
    since: date
    packages: Annotated[list[_Package], Field(min_length=1)]
    tools: Annotated[dict[_ToolName, _Tool], Field(min_length=1)]
    tasks: Annotated[dict[str, _Task], Field(min_length=1)]
