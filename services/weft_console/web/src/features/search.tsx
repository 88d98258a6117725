/** Features by their figures, the words of their labels and the tokens that trigger them; all of it kept in the address. */
import { useEffect, useMemo, useReducer, useRef, useState } from "preact/hooks";
import { get } from "../api";
import { count } from "../format";
import { keep, kept } from "../routes";
import { idOf } from "../types";
import { toApiError, useLoad } from "../ui/load";
import { Empty, Loading, PageHead, Problem } from "../ui/parts";
import { Filters } from "./filters";
import { NoIndex } from "./page";
import { askedOf, problemOf, readQuery, writeQuery, type FeatureQuery } from "./query";
import { FeatureRows } from "./rows";
import { Selection, type Chosen } from "./selection";
import { FeatureTable, TOP, type Place } from "./table";
import { searchPath, type FeatureIndex, type FeaturePageAnswer, type FeatureRow } from "./types";

/** Typing rests for so long before it is asked for. */
const REST_MS = 150;

export function FeatureSearchPage({ transcoder }: { transcoder: string }) {
  const id = encodeURIComponent(transcoder);
  const indexed = useLoad<{ index: FeatureIndex | null }>(`/api/features/${id}/index`);
  if (indexed.problem) return <div class="page"><PageHead title={<>Features of {transcoder}</>} /><Problem problem={indexed.problem} onRetry={indexed.reload} /></div>;
  if (!indexed.data) return <Loading what="the index" />;
  const { index } = indexed.data;
  return (
    <div class="page">
      <PageHead title={<>Features of {transcoder}</>}
        note={index ? (
          <>{count(index.num_features.reduce((sum, one) => sum + one, 0))} features in {index.num_features.length} layers of the transcoder <a href={`/transcoders/${id}`}>{transcoder}</a>, over {count(index.num_tokens)} tokens of <a href={`/datasets/${encodeURIComponent(idOf(index.dataset))}`}>{idOf(index.dataset)}</a>; {count(index.num_dead)} are dead, {count(index.num_dense)} dense</>
        ) : "What its features stand for, and where they are active."} />
      {index ? <Search transcoder={transcoder} /> : <NoIndex transcoder={transcoder} />}
    </div>
  );
}

/** The question as it is written, and the one that is asked once writing rests. */
function useQuery(path: string) {
  const [query, setQuery] = useState(() => readQuery(location.search));
  const [asked, setAsked] = useState(query);
  useEffect(() => {
    const timer = window.setTimeout(() => {
      setAsked(query);
      const address = path + writeQuery(query);
      if (address !== location.pathname + location.search) history.replaceState(history.state, "", address);
    }, REST_MS);
    return () => window.clearTimeout(timer);
  }, [query]);
  useEffect(() => {
    const onPop = () => { if (location.pathname === path) setQuery(readQuery(location.search)); };
    window.addEventListener("popstate", onPop);
    return () => window.removeEventListener("popstate", onPop);
  }, [path]);
  return { query, asked, setQuery };
}

function Search({ transcoder }: { transcoder: string }) {
  const { query, asked, setQuery } = useQuery(searchPath(transcoder));
  const [, redraw] = useReducer((round: number) => round + 1, 0);
  const rows = useMemo(() => new FeatureRows(() => redraw(undefined)), []);
  // Who opens a feature and comes back finds the rows and the choice as they were.
  const [chosen, setChosen] = useState<ReadonlyMap<string, Chosen>>(() => new Map(keptChosen()));
  const place = useRef((kept("place") as Place | undefined) ?? TOP);
  const mistake = problemOf(query);
  const parameters = problemOf(asked) === null ? askedOf(asked).toString() : null;
  const round = useRef(0);
  useEffect(() => {
    if (parameters === null) return;
    round.current++;
    if (round.current > 1) place.current = TOP;
    rows.ask((skip, size, signal) => get<FeaturePageAnswer>(`/api/features/${encodeURIComponent(transcoder)}?${parameters}&skip=${skip}&page_size=${size}`, signal));
  }, [parameters]);
  useEffect(() => () => rows.abort(), []);
  useEffect(() => keep("chosen", [...chosen]), [chosen]);
  const [said, setSaid] = useState("");
  const [below, setBelow] = useState(0);
  const choose = (row: FeatureRow) => setChosen((before) => {
    const next = new Map(before);
    const key = `${row.layer}-${row.index}`;
    if (!next.delete(key)) next.set(key, { layer: row.layer, index: row.index, seen: row.label?.text ?? "" });
    return next;
  });
  const change = (part: Partial<FeatureQuery>) => setQuery((before) => ({ ...before, ...part }));
  const { total } = rows;
  const found = useRef<HTMLParagraphElement>(null);
  const hadChosen = useRef(false);
  // The form that had the focus goes with the last that was chosen.
  useEffect(() => {
    if (hadChosen.current && chosen.size === 0 && document.activeElement === document.body) found.current?.focus({ preventScroll: true });
    hadChosen.current = chosen.size > 0;
  }, [chosen.size]);
  return (
    <>
      <Filters query={query} onChange={change} />
      {mistake ? <Problem problem={mistake} /> : null}
      {rows.problem ? <Problem problem={toApiError(rows.problem)} onRetry={() => rows.retry()} /> : null}
      <p class="found note" role="status" data-stat="found" tabIndex={-1} ref={found}>
        {rows.problem && total === null ? "" : total === null ? "Searching…" : `${count(total)} ${total === 1 ? "feature" : "features"}${asked.by === "token" && asked.text ? ` strongest on “${asked.text}”` : ""}${rows.isStale ? ", searching…" : ""}`}{said ? ` · ${said}` : ""}
      </p>
      {total === 0 ? <Nothing query={asked} /> : null}
      {total ? (
        <FeatureTable transcoder={transcoder} rows={rows} total={total} round={round.current} place={place.current} below={chosen.size > 0 ? below : null} query={query} onSort={(sort, falls) => change({ sort, falls })} chosen={chosen} onChoose={choose} />
      ) : null}
      {chosen.size > 0 ? <Selection transcoder={transcoder} chosen={chosen} onChange={setChosen} onLabel={(layer, index, label) => rows.relabel(layer, index, label)} onSay={setSaid} onHeight={setBelow} /> : null}
    </>
  );
}

function keptChosen(): [string, Chosen][] {
  return (kept("chosen") as [string, Chosen][] | undefined) ?? [];
}

function Nothing({ query }: { query: FeatureQuery }) {
  return (
    <Empty title="Nothing found">
      {query.by === "label" && query.text.trim() ? "No label has all of these words. Labels come from people, from weft labels import and from weft labels explain; take fewer words or fewer filters."
        : query.by === "token" && query.text ? "No feature's strongest stretches peak on this token with these filters."
          : "No feature has figures like these; take fewer filters."}
    </Empty>
  );
}
