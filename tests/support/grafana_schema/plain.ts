// Grafana's types for what the generated dashboards are made of: panels of three kinds, and the rest.
import type * as grafana from "@grafana/schema";
import type * as stat from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type * as table from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";
import type * as timeseries from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

/** A type as JSON writes it: the members of an enum are their strings. */
type Plain<T> = T extends string
  ? `${T}`
  : T extends number | boolean | null | undefined
    ? T
    : T extends Array<infer Item>
      ? Array<Plain<Item>>
      : T extends object
        ? { [Key in keyof T]: Plain<T[Key]> }
        : T;

type Panel<Type, Options, Custom> = Plain<
  Omit<grafana.Panel, "type" | "options" | "fieldConfig" | "targets"> & {
    options: Options;
    fieldConfig: {
      defaults: Omit<grafana.FieldConfig, "custom"> & { custom?: Custom };
      overrides: [];
    };
  }
> & { type: Type; targets: Record<string, unknown>[] };

export type Graph = Panel<"timeseries", timeseries.Options, timeseries.FieldConfig>;
export type Number = Panel<"stat", stat.Options, never>;
export type Table = Panel<"table", table.Options, table.FieldConfig>;
export type Row = Plain<grafana.RowPanel>;
export type Board = Plain<Omit<grafana.Dashboard, "panels">>;
