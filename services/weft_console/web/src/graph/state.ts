/** What a person has set on a graph's page, kept in the address's fragment so that a link shares it. */
export interface PageState {
  selected: string | null;
  pinned: string[];
  threshold: number;
  showErrors: boolean;
  numEdges: number;
}

export function readState(fragment: string, threshold: number): PageState {
  const values = new URLSearchParams(fragment.replace(/^#/, ""));
  const number = (key: string, otherwise: number, low: number, high: number) => {
    const value = Number(values.get(key) ?? NaN);
    return Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : otherwise;
  };
  return {
    selected: values.get("selected"),
    pinned: (values.get("pinned") ?? "").split(",").filter(Boolean),
    threshold: number("influence", threshold, 0, 1),
    showErrors: values.get("errors") !== "0",
    numEdges: number("edges", 300, 0, 2000),
  };
}

export function writeState(state: PageState, threshold: number): string {
  const values = new URLSearchParams();
  if (state.selected) values.set("selected", state.selected);
  if (state.pinned.length > 0) values.set("pinned", state.pinned.join(","));
  if (state.threshold !== threshold) values.set("influence", state.threshold.toFixed(3));
  if (!state.showErrors) values.set("errors", "0");
  if (state.numEdges !== 300) values.set("edges", String(state.numEdges));
  const text = values.toString();
  return text ? `#${text}` : "";
}
