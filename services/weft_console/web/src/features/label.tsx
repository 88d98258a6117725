/** What a feature stands for: the label, whose it is, its scores and everything that was said before; a person may say it anew. */
import { useEffect, useRef, useState } from "preact/hooks";
import { get, post, remove, type ApiError } from "../api";
import { ago } from "../format";
import { toApiError, useLoad } from "../ui/load";
import { Problem } from "../ui/parts";
import type { Label, LabelHistory, LabelScore } from "./types";

const AUTHOR = "weft.author";
const MAX_LABEL = 500;
/** What guessing scores. */
const CHANCE: Record<string, number> = { detection: 0.5, fuzzing: 0.5, intruder: 0.2, embedding: 0.5 };

export function rememberedAuthor(): string {
  return localStorage.getItem(AUTHOR) ?? "";
}

export function rememberAuthor(author: string): void {
  localStorage.setItem(AUTHOR, author);
}

/** The person's or the model's name; empty for a person who gave none. */
function saidBy(label: Label): string {
  if (label.origin === "human") return label.author;
  return [label.explainer || "a model", label.prompt].filter(Boolean).join(", ");
}

export function OriginBadge({ isHuman }: { isHuman: boolean }) {
  return <span class={`origin ${isHuman ? "is-human" : "is-model"}`}>{isHuman ? "person" : "model"}</span>;
}

/** The label of one feature, with what changes it. */
export function LabelPart({ transcoder, layer, index, onLabel }: { transcoder: string; layer: number; index: number; onLabel: (label: Label | null) => void }) {
  const path = `/api/features/${encodeURIComponent(transcoder)}/${layer}-${index}/label`;
  const loaded = useLoad<LabelHistory>(path);
  const [changed, setChanged] = useState<LabelHistory | null>(null);
  const [isEditing, setEditing] = useState(false);
  const [isBusy, setBusy] = useState(false);
  const [problem, setProblem] = useState<ApiError | null>(null);
  const card = useRef<HTMLElement>(null);
  const heading = useRef<HTMLHeadingElement>(null);
  const history = changed ?? loaded.data;
  useEffect(() => {
    if (history) onLabel(history.label);
  }, [history]);
  if (loaded.problem && !history) return <section class="card"><h2>Label</h2><Problem problem={loaded.problem} onRetry={loaded.reload} /></section>;
  /** What had the focus is gone or about to go: the card's heading takes it, unless somebody went elsewhere. */
  const rest = () => {
    const at = document.activeElement;
    if (!at || at === document.body || card.current?.contains(at)) heading.current?.focus({ preventScroll: true });
  };
  const close = () => { setProblem(null); setEditing(false); rest(); };
  const take = (fresh: LabelHistory) => { setChanged(fresh); close(); };
  /** Somebody else was first: what they said is shown, and what is being written stays. */
  const fail = (error: unknown) => {
    const failed = toApiError(error);
    setProblem(failed);
    if (failed.code === "ABORTED") get<LabelHistory>(path).then(setChanged, (another: unknown) => setProblem(toApiError(another)));
  };
  const label = history?.label ?? null;
  const withdraw = async () => {
    setBusy(true);
    await remove<LabelHistory>(`${path}?origin=${label!.origin}&etag=${encodeURIComponent(history!.etag)}`).then(take, fail);
    setBusy(false);
    rest();
  };
  return (
    <section class="card label-card" aria-labelledby="label" data-part="label" ref={card}>
      <div class="card-head">
        <h2 id="label" tabIndex={-1} ref={heading}>Label</h2>
        {history && !isEditing ? (
          <div class="row">
            <button type="button" class="button small" disabled={isBusy} onClick={() => { setEditing(true); setProblem(null); }}>{label ? "Change" : "Label it"}</button>
            {label ? <button type="button" class="button small quiet" disabled={isBusy} onClick={() => void withdraw()}>{isBusy ? "Withdrawing…" : `Withdraw ${label.origin === "human" ? "person" : "model"}’s label`}</button> : null}
          </div>
        ) : null}
      </div>
      {history ? (
        label ? (
          <p class="label-stands"><span class="label-text" data-stat="label">{label.text}</span> <OriginBadge isHuman={label.origin === "human"} /> <span class="note">{[saidBy(label), ago(label.create_time)].filter(Boolean).join(" · ")}</span></p>
        ) : <p class="note">Nobody has said what it stands for.</p>
      ) : <p class="note" role="status">Reading the label…</p>}
      {problem ? <Problem problem={problem} /> : null}
      {isEditing && history ? <LabelForm path={path} history={history} isConflict={problem?.code === "ABORTED"} onDone={take} onFail={fail} onCancel={close} /> : null}
      {label && label.scores.length > 0 ? <Scores scores={label.scores} /> : null}
      {history && history.revisions.length > 0 ? <Revisions history={history} /> : null}
    </section>
  );
}

function LabelForm(props: { path: string; history: LabelHistory; isConflict: boolean; onDone: (fresh: LabelHistory) => void; onFail: (error: unknown) => void; onCancel: () => void }) {
  const [text, setText] = useState(props.history.label?.text ?? "");
  const [author, setAuthor] = useState(rememberedAuthor());
  const [isBusy, setBusy] = useState(false);
  const words = useRef<HTMLInputElement>(null);
  useEffect(() => words.current?.focus(), []);
  const save = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    try {
      rememberAuthor(author);
      props.onDone(await post<LabelHistory>(props.path, { text, author, etag: props.history.etag }));
    } catch (error) {
      props.onFail(error);
      words.current?.focus();
    }
    setBusy(false);
  };
  return (
    <form class="label-form" onSubmit={(event) => void save(event)} onKeyDown={(event) => { if (event.key === "Escape" && !event.isComposing) props.onCancel(); }}>
      <label class="field grow"><span>What it stands for</span>
        <input type="text" required maxLength={MAX_LABEL} value={text} ref={words} onInput={(event) => setText(event.currentTarget.value)} />
      </label>
      <label class="field"><span>Your name (optional)</span>
        <input type="text" maxLength={100} value={author} onInput={(event) => setAuthor(event.currentTarget.value)} />
      </label>
      <div class="row">
        <button type="submit" class="button primary" disabled={isBusy || text.trim() === ""}>{props.isConflict ? "Save after theirs" : "Save"}</button>
        <button type="button" class="button quiet" onClick={props.onCancel}>Cancel</button>
      </div>
      <p class="note">{props.isConflict ? "What you wrote is kept here. Saved now, it follows what stands above, which stays in the history." : "A person's label stands before any model's, and what was said before stays in the history."}</p>
    </form>
  );
}

function Scores({ scores }: { scores: LabelScore[] }) {
  return (
    <div class="scroll">
      <table class="compact scores">
        <caption>How well it predicts where the feature is active</caption>
        <thead><tr><th scope="col">Test</th><th scope="col">Score</th><th scope="col">95% interval</th><th scope="col">Chance</th><th scope="col">Trials</th><th scope="col">Unanswered</th><th scope="col">By</th></tr></thead>
        <tbody>
          {scores.map((score) => (
            <tr key={score.kind} data-score={score.kind}>
              <th scope="row">{score.kind}</th>
              <td><b>{score.value.toFixed(2)}</b></td>
              <td>{score.low.toFixed(2)} to {score.high.toFixed(2)}</td>
              <td>{CHANCE[score.kind]?.toFixed(1) ?? "–"}</td>
              <td>{score.num_trials}</td>
              <td>{score.num_unanswered}</td>
              <td class="nowrap">{[score.scorer, score.prompt].filter(Boolean).join(", ")}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Revisions({ history }: { history: LabelHistory }) {
  return (
    <details class="revisions">
      <summary>Everything that was said ({history.has_more ? `the last ${history.revisions.length}` : history.revisions.length})</summary>
      <ol data-list="revisions">
        {history.revisions.map((one) => (
          <li key={one.revision}>
            <span class="note">{one.revision}</span>
            <span>{one.text ? <span class="label-text">{one.text}</span> : <em class="note">withdrawn</em>} <OriginBadge isHuman={one.origin === "human"} /></span>
            <span class="note">{one.text ? saidBy(one) : ""} <time dateTime={one.create_time ?? undefined} title={one.create_time ? new Date(one.create_time).toLocaleString("en-GB") : undefined}>{ago(one.create_time)}</time></span>
          </li>
        ))}
      </ol>
    </details>
  );
}
