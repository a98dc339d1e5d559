"""What all dashboards have in common: what a panel must say, and how it looks.

A dashboard is plain data (`Dashboard`, `Row`, `Panel`); `build` makes Grafana's model of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import count
from string import ascii_uppercase
from typing import Final, TypeVar

from grafana_foundation_sdk.builders import common as look
from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.builders import prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.table import Options as TableOptions

DATA_SOURCE: Final = dashboard.DataSourceRef(type_val="prometheus", uid="prometheus")
TAG: Final = "ratestream"
COLUMNS: Final = 24
REFRESH: Final = "10s"
RUNBOOKS: Final = "docs/runbooks"

_REF_IDS = ascii_uppercase
_GREEN, _AMBER, _RED = "green", "orange", "red"


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL, and the name of each series that it gives; `{{label}}` stands for a label."""

    expression: str
    legend: str


@dataclass(frozen=True, slots=True)
class Limits:
    """From where on a value is worth a look, and from where on it is wrong; in the panel's unit.

    With `low`, values below them are.
    """

    warning: float | None = None
    critical: float | None = None
    low: bool = False


class Kind(Enum):
    GRAPH = "timeseries"
    NUMBER = "stat"
    TABLE = "table"


_HEIGHTS: Final = {Kind.GRAPH: 8, Kind.NUMBER: 5, Kind.TABLE: 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One question, its answer, and what to make of it."""

    title: str
    shows: str
    normal: str
    otherwise: str
    unit: str
    """One of Grafana's unit ids."""
    queries: tuple[Query, ...]
    no_data: str
    """Shown instead of a value when there is none."""
    runbook: str = ""
    """A page of docs/runbooks, without its ending."""
    limits: Limits = Limits()
    kind: Kind = Kind.GRAPH
    width: int = 12
    """Of 24 columns."""
    more: str = ""
    """Uid of the dashboard that tells more."""
    hidden_columns: tuple[str, ...] = ()
    """Of a table."""
    minimum: float | None = 0
    maximum: float | None = None

    @property
    def description(self) -> str:
        text = f"{self.shows}\n\n**Normal:** {self.normal}\n\n**Otherwise:** {self.otherwise}"
        return f"{text}\n\n**Runbook:** {RUNBOOKS}/{self.runbook}.md" if self.runbook else text


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice above the panels among the values of `label` in `selector`; several, or all."""

    label: str
    selector: str


@dataclass(frozen=True, slots=True)
class Dashboard:
    uid: str
    title: str
    about: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...] = ()

    @property
    def panels(self) -> Iterator[Panel]:
        for row in self.rows:
            yield from row.panels


def build(board: Dashboard) -> dashboard.Dashboard:
    """As Grafana reads it. Panels have their ids in reading order."""
    ids = count(1)
    builder = (
        grafana.Dashboard(board.title)
        .uid(board.uid)
        .description(board.about)
        .tags([TAG])
        .readonly()
        .timezone("browser")
        .time("now-1h", "now")
        .refresh(REFRESH)
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .link(_to_the_others())
    )
    for variable in board.variables:
        builder.with_variable(_variable(variable))
    for row in board.rows:
        builder.with_row(grafana.Row(row.title).id(next(ids)))
        for line in _lines(row.panels):
            height = max(_HEIGHTS[panel.kind] for panel in line)
            for panel in line:
                builder.with_panel(_panel(panel, next(ids), height))
    return _without_defaults_of_others(builder.build())


def _without_defaults_of_others(model: dashboard.Dashboard) -> dashboard.Dashboard:
    """The kit fills in defaults that belong to another kind of variable, and to tables of older
    versions of Grafana."""
    for variable in model.templating.list_val or ():
        variable.auto = variable.auto_min = variable.auto_count = None
    for panel in model.panels or ():
        if isinstance(panel, dashboard.Panel) and isinstance(panel.options, TableOptions):
            panel.options.footer = None
    return model


def _to_the_others() -> grafana.DashboardLink:
    return (
        grafana.DashboardLink("ratestream")
        .type(dashboard.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .as_dropdown(True)
        .keep_time(True)
    )


def _to(uid: str) -> grafana.DashboardLink:
    return (
        grafana.DashboardLink("More about it")
        .type(dashboard.DashboardLinkType.LINK)
        .url(f"/d/{uid}")
        .keep_time(True)
    )


def _variable(variable: Variable) -> grafana.QueryVariable:
    everything = dashboard.VariableOption(selected=True, text="All", value="$__all")
    return (
        grafana.QueryVariable(variable.label)
        .datasource(DATA_SOURCE)
        .query(
            {
                "qryType": 1,
                "query": f"label_values({variable.selector}, {variable.label})",
                "refId": "PrometheusVariableQueryEditor-VariableQuery",
            }
        )
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(everything)
    )


_Builder = TypeVar("_Builder", timeseries.Panel, stat.Panel, table.Panel)


def _lines(panels: Iterable[Panel]) -> Iterator[list[Panel]]:
    """Panels that stand side by side."""
    line: list[Panel] = []
    for panel in panels:
        if sum(each.width for each in (*line, panel)) > COLUMNS:
            yield line
            line = []
        line.append(panel)
    yield line


def _panel(panel: Panel, panel_id: int, height: int) -> timeseries.Panel | stat.Panel | table.Panel:
    match panel.kind:
        case Kind.GRAPH:
            return _described(_graph(panel), panel).id(panel_id).height(height)
        case Kind.NUMBER:
            return _described(_number(), panel).id(panel_id).height(height)
        case Kind.TABLE:
            return _described(_table(panel), panel).id(panel_id).height(height)


def _described(builder: _Builder, panel: Panel) -> _Builder:
    builder = (
        builder.title(panel.title)
        .description(panel.description)
        .datasource(DATA_SOURCE)
        .span(panel.width)
        .unit(panel.unit)
        .no_value(panel.no_data)
        .thresholds(_thresholds(panel.limits))
        .targets([_target(panel, *named) for named in zip(_REF_IDS, panel.queries, strict=False)])
    )
    if panel.minimum is not None:
        builder = builder.min(panel.minimum)
    if panel.maximum is not None:
        builder = builder.max(panel.maximum)
    if panel.more:
        builder = builder.links([_to(panel.more)])
    return builder


def _target(panel: Panel, ref_id: str, query: Query) -> prometheus.Dataquery:
    target = (
        prometheus.Dataquery()
        .ref_id(ref_id)
        .datasource(DATA_SOURCE)
        .expr(query.expression)
        .legend_format(query.legend)
    )
    match panel.kind:
        case Kind.GRAPH:
            return target.range()
        case Kind.NUMBER:
            return target.instant()
        case Kind.TABLE:
            return target.instant().format(PromQueryFormat.TABLE)


def _graph(panel: Panel) -> timeseries.Panel:
    mode = common.GraphThresholdsStyleMode
    lines = mode.OFF if panel.limits == Limits() else mode.DASHED
    return (
        timeseries.Panel()
        .line_width(1)
        .fill_opacity(10)
        .show_points(common.VisibilityMode.NEVER)
        .color_scheme(grafana.FieldColor().mode(dashboard.FieldColorModeId.PALETTE_CLASSIC))
        .thresholds_style(look.GraphThresholdsStyleConfig().mode(lines))
        .tooltip(
            look.VizTooltipOptions()
            .mode(common.TooltipDisplayMode.MULTI)
            .sort(common.SortOrder.DESCENDING)
        )
        .legend(
            look.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs([])
        )
    )


def _number() -> stat.Panel:
    return (
        stat.Panel()
        .reduce_options(look.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields(""))
        .color_mode(common.BigValueColorMode.VALUE)
        .graph_mode(common.BigValueGraphMode.NONE)
        .text_mode(common.BigValueTextMode.AUTO)
        .color_scheme(grafana.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
    )


def _table(panel: Panel) -> table.Panel:
    hidden = dict.fromkeys(("Time", *panel.hidden_columns), True)
    names = {"Value": panel.queries[0].legend}
    organize = dashboard.DataTransformerConfig(
        id_val="organize", options={"excludeByName": hidden, "renameByName": names}
    )
    return (
        table.Panel()
        .show_header(True)
        .color_scheme(grafana.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
        .with_transformation(organize)
    )


def _thresholds(limits: Limits) -> grafana.ThresholdsConfig:
    steps = [(limits.warning, _AMBER), (limits.critical, _RED)]
    given = [(value, colour) for value, colour in steps if value is not None]
    if limits.low:
        given.reverse()
        colours = [*(colour for _, colour in given), _GREEN]
    else:
        colours = [_GREEN, *(colour for _, colour in given)]
    starts = [None, *(value for value, _ in given)]
    return (
        grafana.ThresholdsConfig()
        .mode(dashboard.ThresholdsMode.ABSOLUTE)
        .steps(
            [
                dashboard.Threshold(value=start, color=colour)
                for start, colour in zip(starts, colours, strict=True)
            ]
        )
    )
