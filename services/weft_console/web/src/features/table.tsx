/** A table of any number of rows: only those that are seen are there. */
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { count, figure } from "../format";
import { density } from "./density";
import { OriginBadge } from "./label";
import type { FeatureQuery } from "./query";
import type { FeatureRows } from "./rows";
import { keep } from "../routes";
import { barOf, extentOf, moved, topFor } from "./scroll";
import type { Chosen } from "./selection";
import { featurePath, shortName, type FeatureRow } from "./types";

const ROW = 36;
const HEAD = 36;
/** Rows that are drawn beyond what is seen, and scrolling that rests for so long before rows are asked for. */
const BEYOND = 4;
const REST_MS = 60;

/** Where the rows stand, in pixels, and the row that the keyboard is at. */
export interface Place {
  top: number;
  cursor: number;
}

export const TOP: Place = { top: 0, cursor: 0 };

interface Props {
  transcoder: string;
  rows: FeatureRows;
  total: number;
  /** Number of the search: another one begins at the top. */
  round: number;
  /** Where it begins. */
  place: Place;
  /** Height of what stands below and is to be seen with the rows; null where nothing does. */
  below: number | null;
  query: FeatureQuery;
  onSort: (sort: string, falls: boolean) => void;
  chosen: ReadonlyMap<string, Chosen>;
  onChoose: (row: FeatureRow) => void;
}

export function FeatureTable(props: Props) {
  const { rows, total, query } = props;
  const host = useRef<HTMLDivElement>(null);
  /** Where rows and bar stand now; what is drawn may be a frame behind. */
  const now = useRef(0);
  const bar = useRef(0);
  /** The row that is to have the focus as soon as it is there. */
  const goes = useRef<number | null>(null);
  const [top, setTop] = useState(0);
  /** Null until it is measured. */
  const [height, setHeight] = useState<number | null>(null);
  const [cursor, setCursor] = useState(0);
  const extent = extentOf(total, ROW);
  const view = Math.min((height ?? 480) - HEAD, extent.real);
  const first = Math.max(0, Math.floor(top / ROW));
  const last = Math.min(total - 1, Math.ceil((top + view) / ROW) + BEYOND);

  useLayoutEffect(() => {
    const observer = new ResizeObserver(() => setHeight(host.current?.clientHeight ?? 480));
    observer.observe(host.current!);
    return () => observer.disconnect();
  }, []);
  const place = (next: number) => {
    const at = Math.max(0, Math.min(extent.real - view, next));
    now.current = at;
    bar.current = Math.round(barOf(at, extent, view));
    if (host.current) host.current.scrollTop = bar.current;
    setTop(at);
  };
  /** Whether the browser has scrolled and not said so yet: whoever scrolls is not brought back. */
  const isScrolling = () => host.current !== null && Math.abs(host.current.scrollTop - bar.current) >= 1;
  useEffect(() => { goes.current = null; setCursor(props.place.cursor); place(props.place.top); }, [props.round]);
  useEffect(() => { if (top > extent.real - view) place(extent.real - view); }, [total, view]);
  // The row that has the keyboard stays in sight when the table gets lower, if it is not being scrolled away.
  const viewBefore = useRef(view);
  useEffect(() => {
    const wasSeen = (cursor + 1) * ROW > now.current && cursor * ROW < now.current + viewBefore.current;
    viewBefore.current = view;
    if (wasSeen && !isScrolling() && host.current?.querySelector("[data-row] :focus")) place(topFor(cursor, ROW, now.current, view));
  }, [view]);
  // Near the end a place can be gone to only once it is known how many rows are seen at a time.
  useEffect(() => { if (height !== null) place(props.place.top); }, [height === null]);
  const remembered = useRef<Place>(props.place);
  const remember = (row: number) => {
    const { current } = remembered;
    if (current.top === now.current && current.cursor === row) return;
    remembered.current = { top: now.current, cursor: row };
    keep("place", remembered.current);
  };
  // Rows are asked for where scrolling rests, and the bar is put where the rows are.
  useEffect(() => {
    const timer = window.setTimeout(() => {
      rows.want(first, last);
      // Scrolling may have begun anew since this was drawn: it counts from where it is now.
      const wanted = Math.round(barOf(now.current, extent, view));
      if (!isScrolling() && Math.abs(wanted - bar.current) > 1) place(now.current);
      remember(cursor);
    }, REST_MS);
    return () => window.clearTimeout(timer);
  });
  useEffect(() => {
    if (goes.current === null || !host.current) return;
    const at = document.activeElement;
    if (at && at !== document.body && !host.current.contains(at)) {
      // Whoever went elsewhere before the row came stays there.
      goes.current = null;
      return;
    }
    const link = host.current.querySelector<HTMLElement>(`[data-row="${goes.current}"] a`);
    // Until the row is there the table has the focus, so that no key is lost.
    (link ?? host.current).focus({ preventScroll: true });
    if (link) goes.current = null;
  });

  const onScroll = () => {
    const next = host.current!.scrollTop;
    // The browser may keep a fraction of a pixel of what it was given.
    if (Math.abs(next - bar.current) < 1) return;
    goes.current = null;
    now.current = moved(now.current, bar.current, next, extent, view);
    bar.current = next;
    setTop(now.current);
  };
  const go = (row: number) => {
    const next = Math.max(0, Math.min(total - 1, row));
    goes.current = next;
    setCursor(next);
    place(topFor(next, ROW, now.current, view));
    host.current!.scrollIntoView({ block: "nearest" });
  };
  const onKey = (event: KeyboardEvent) => {
    const isRows = event.target === host.current || (event.target as Element).closest("tbody") !== null;
    if (!isRows || event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(view / ROW) - 1);
    const steps: Record<string, number> = { ArrowDown: cursor + 1, ArrowUp: cursor - 1, PageDown: cursor + page, PageUp: cursor - page, Home: 0, End: total - 1 };
    const row = rows.row(cursor);
    if (event.key in steps) go(steps[event.key]!);
    else if (event.key === " " && (event.target as Element).tagName === "A" && row) props.onChoose(row);
    else return;
    event.preventDefault();
  };
  const head = (sort: string, name: string, title: string, kind: string) => {
    const isBy = query.sort === sort;
    return (
      <th scope="col" class={kind} title={title} aria-sort={isBy ? (query.falls ? "descending" : "ascending") : "none"}>
        <button type="button" class="sort" onClick={() => props.onSort(sort, isBy ? !query.falls : true)}>{name}<span aria-hidden="true">{isBy ? (query.falls ? " ↓" : " ↑") : ""}</span></button>
      </th>
    );
  };
  const hasStretches = rows.tokenIds.length > 0;
  const numbers = Array.from({ length: Math.max(0, last - first + 1) }, (_, at) => first + at);
  return (
    <div class={`rows${rows.isStale ? " is-stale" : ""}${props.below === null ? "" : " is-short"}`} ref={host} tabIndex={-1} style={{ "--rows": `${HEAD + extent.shown + 2}px`, "--below": `${(props.below ?? 0) + 18}px` }} onScroll={onScroll} onKeyDown={onKey}
      onClick={(event) => {
        // Before its link leads away from here.
        const row = (event.target as Element).closest("a")?.closest<HTMLElement>("[data-row]");
        if (row) remember(Number(row.dataset.row));
      }}
      onFocusOut={(event) => {
        // To nowhere goes the focus of a row that was scrolled away: it comes back.
        if (event.relatedTarget && !host.current!.contains(event.relatedTarget as Node)) goes.current = null;
      }}
      onFocusIn={(event) => {
        const row = (event.target as Element).closest<HTMLElement>("[data-row]");
        if (row && goes.current === null) setCursor(Number(row.dataset.row));
      }}>
      <div class="rows-space" style={{ height: `${HEAD + extent.shown}px` }}>
        <div class="rows-view" style={{ height: `${HEAD + view}px` }}>
          <table class="rows-table" aria-rowcount={total + 1} aria-label="Features found">
            <thead>
              <tr aria-rowindex={1}>
                <th scope="col" class="is-check"><span class="visually-hidden">Chosen</span></th>
                {head("layer", "Feature", "Layer and index", "is-name")}
                <th scope="col" class="is-label">Label</th>
                {hasStretches ? <th scope="col" class="num" title="Of its strongest stretches, how many are strongest on the token">Stretches</th> : null}
                {head("density", "Density", "Share of tokens on which it is active", "num")}
                {head("max_activation", "Largest", "Largest activation", "num is-more")}
                {head("mean_activation", "Mean", "Mean activation where it is active", "num is-most")}
                {head("decoder_norm", "Norm", "Norm of its decoders of all target layers together", "num is-more")}
                {head("last_layer", "Writes to", "Layers where its decoder has at least a hundredth of its largest norm", "num is-most")}
                {head("score", "Score", `Score of its label by ${query.scoreKind}`, "num is-more")}
              </tr>
            </thead>
            <tbody style={{ transform: `translateY(${first * ROW - top}px)` }}>
              {numbers.map((at) => <Row key={at} at={at} row={rows.row(at)} isCursor={at === cursor || (at === first && (cursor < first || cursor > last))} hasStretches={hasStretches} {...props} />)}
            </tbody>
          </table>
        </div>
      </div>
    </div>
  );
}

function Row(props: { at: number; row: FeatureRow | undefined; isCursor: boolean; hasStretches: boolean; transcoder: string; query: FeatureQuery; chosen: ReadonlyMap<string, Chosen>; onChoose: (row: FeatureRow) => void }) {
  const { at, row, hasStretches } = props;
  if (!row) return <tr class="is-waiting" data-row={at} aria-rowindex={at + 2}><td class="is-check" /><td class="is-name">…</td><td class="is-label" /></tr>;
  const { layer, index, statistics, label } = row;
  const isChosen = props.chosen.has(`${layer}-${index}`);
  const name = shortName(layer, index);
  const score = label?.scores[props.query.scoreKind];
  const tab = props.isCursor ? 0 : -1;
  return (
    <tr class={isChosen ? "is-chosen" : ""} data-row={at} aria-rowindex={at + 2}>
      <td class="is-check"><input type="checkbox" tabIndex={tab} checked={isChosen} aria-label={`Choose ${name}`} onChange={() => props.onChoose(row)} /></td>
      <td class="is-name"><a tabIndex={tab} href={featurePath(props.transcoder, layer, index)}>{name}</a>{statistics && statistics.state !== "active" ? <small> {statistics.state}</small> : null}</td>
      <td class="is-label" title={label?.text}>{label ? <><OriginBadge isHuman={label.is_human} /> <span class="label-text">{label.text}</span></> : null}</td>
      {hasStretches ? <td class="num">{count(row.num_stretches ?? 0)}</td> : null}
      <td class="num">{statistics ? density(statistics.density) : "–"}</td>
      <td class="num is-more">{statistics ? figure(statistics.max_activation) : "–"}</td>
      <td class="num is-most">{statistics ? figure(statistics.mean_activation) : "–"}</td>
      <td class="num is-more">{statistics ? figure(statistics.decoder_norm) : "–"}</td>
      <td class="num is-most">{statistics ? (statistics.first_layer === statistics.last_layer ? statistics.first_layer : `${statistics.first_layer}–${statistics.last_layer}`) : "–"}</td>
      <td class="num is-more">{score === undefined ? "–" : score.toFixed(2)}</td>
    </tr>
  );
}
