/** What came of each feature of a job, as it comes: a long table of which only what is seen is drawn. */
import { useEffect, useRef, useState } from "preact/hooks";
import { count } from "../format";
import { Problem } from "../ui/parts";
import { FAILURES, OUTCOME_NAMES } from "./model";
import { MOST_ROWS, useResults } from "./results";
import type { InterpretedFeature, Kind, LabelScore, Outcome } from "./types";

const ROW = 40;
const SPARE = 12;

const SHOWN: Record<string, { name: string; outcomes: Outcome[] }> = {
  all: { name: "all", outcomes: [] },
  failures: { name: "failures", outcomes: FAILURES },
  good: { name: "labelled or scored", outcomes: ["labelled", "scored"] },
  kept: { name: "label kept", outcomes: ["kept"] },
  few: { name: "too few examples, or no label", outcomes: ["too_few", "unlabelled"] },
};

export function FeatureResults(props: { id: string; transcoder: string; kinds: Kind[]; completed: number; isOver: boolean }) {
  const [shown, setShown] = useState(() => new URLSearchParams(location.search).get("show") ?? "all");
  const { name, outcomes } = SHOWN[shown] ?? SHOWN.all!;
  const { rows, isLoading, problem, retry } = useResults(props.id, outcomes, props.completed, props.isOver);
  const place = useRef<HTMLDivElement>(null);
  const [view, setView] = useState({ top: 0, height: 480 });
  const choose = (value: string) => {
    setShown(value);
    place.current?.scrollTo(0, 0);
    history.replaceState(history.state, "", value === "all" ? location.pathname : `${location.pathname}?show=${value}`);
  };
  useEffect(() => {
    const box = place.current;
    if (!box) return undefined;
    const measure = () => setView({ top: box.scrollTop, height: box.clientHeight });
    const watch = new ResizeObserver(measure);
    watch.observe(box);
    box.addEventListener("scroll", measure, { passive: true });
    return () => {
      watch.disconnect();
      box.removeEventListener("scroll", measure);
    };
  }, []);
  const first = Math.max(0, Math.floor(view.top / ROW) - SPARE);
  const last = Math.min(rows.length, Math.ceil((view.top + view.height) / ROW) + SPARE);
  const columns = 3 + props.kinds.length;
  return (
    <section aria-label="Features" class="job-features">
      <div class="row">
        <h2>Features <span class="count">{count(rows.length)}{name === "all" ? "" : ` ${name}`}</span></h2>
        <label class="field job-show"><span>Show</span>
          <select value={SHOWN[shown] ? shown : "all"} onChange={(event) => choose(event.currentTarget.value)}>
            {Object.entries(SHOWN).map(([value, one]) => <option key={value} value={value}>{one.name}</option>)}
          </select>
        </label>
      </div>
      {problem ? <Problem problem={problem} onRetry={retry} /> : null}
      {rows.length >= MOST_ROWS ? <p class="note">The first {count(MOST_ROWS)} are shown; <code>weft labels export</code> writes all labels to a file.</p> : null}
      <div class="scroll job-scroll" ref={place} role="region" aria-label="Features, table" tabIndex={0}>
        <table class="table job-table" data-list="results" aria-rowcount={rows.length + 1}>
          <thead><tr><th scope="col">Feature</th><th scope="col">Outcome</th><th scope="col">Label</th>{props.kinds.map((kind) => <th key={kind} scope="col" class="num">{kind}</th>)}</tr></thead>
          <tbody>
            {first > 0 ? <tr class="spacer" aria-hidden="true" style={{ height: `${first * ROW}px` }}><td colSpan={columns} /></tr> : null}
            {rows.slice(first, last).map((row, at) => <Row key={row.position} row={row} number={first + at + 2} transcoder={props.transcoder} kinds={props.kinds} />)}
            {last < rows.length ? <tr class="spacer" aria-hidden="true" style={{ height: `${(rows.length - last) * ROW}px` }}><td colSpan={columns} /></tr> : null}
          </tbody>
        </table>
        {rows.length === 0 ? <p class="note job-none">{isLoading ? "Loading…" : problem ? "" : name === "all" ? (props.isOver ? "It came to no feature." : "The first features are worked on.") : "None."}</p> : null}
      </div>
    </section>
  );
}

function Row(props: { row: InterpretedFeature; number: number; transcoder: string; kinds: Kind[] }) {
  const { row } = props;
  const isBad = FAILURES.includes(row.outcome);
  const scoreOf = (scores: LabelScore[], kind: Kind) => scores.find((one) => one.kind === kind);
  return (
    <tr aria-rowindex={props.number}>
      <td class="mono"><a href={`/transcoders/${encodeURIComponent(props.transcoder)}/features/${row.layer}/${row.index}`}>{row.layer}-{row.index}</a></td>
      <td><span class={`outcome is-${isBad ? "bad" : row.outcome}`}>{OUTCOME_NAMES[row.outcome] ?? row.outcome}</span></td>
      <td class="job-label" title={[row.label, row.reason].filter(Boolean).join(" — ")}>{row.label}{row.reason ? <small>{row.reason}</small> : null}</td>
      {props.kinds.map((kind) => {
        const score = scoreOf(row.scores, kind);
        const control = scoreOf(row.control_scores, kind);
        return (
          <td key={kind} class="num" title={score ? `${score.low.toFixed(3)} to ${score.high.toFixed(3)}, ${score.num_trials} trials, ${score.num_unanswered} without an answer` : ""}>
            {score ? score.value.toFixed(2) : "–"}{control ? <small title={`With a shuffled label: ${control.low.toFixed(3)} to ${control.high.toFixed(3)}`}>shuffled {control.value.toFixed(2)}</small> : null}
          </td>
        );
      })}
    </tr>
  );
}
