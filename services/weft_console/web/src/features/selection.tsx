/** What is done with chosen features: links to them are copied, or they are labelled alike. */
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { post, type ApiError } from "../api";
import { count } from "../format";
import { toApiError } from "../ui/load";
import { Problem } from "../ui/parts";
import { CopyButton } from "./copy";
import { rememberAuthor, rememberedAuthor } from "./label";
import { featurePath, shortName, type StandingLabel } from "./types";

/** A chosen feature, and the label that was seen with it; empty where there was none. */
export interface Chosen {
  layer: number;
  index: number;
  seen: string;
}

interface Told {
  num_labelled: number;
  conflicts: { layer: number; index: number; text: string }[];
  failures: { layer: number; index: number; detail: string }[];
}

/** As many as the backend labels at once. */
const MOST = 200;

export function Selection(props: { transcoder: string; chosen: ReadonlyMap<string, Chosen>; onChange: (change: (now: ReadonlyMap<string, Chosen>) => ReadonlyMap<string, Chosen>) => void; onLabel: (layer: number, index: number, label: StandingLabel) => void; onSay: (text: string) => void; onHeight: (height: number) => void }) {
  const { transcoder, chosen } = props;
  const [text, setText] = useState("");
  const [told, setTold] = useState<Told | null>(null);
  const [problem, setProblem] = useState<ApiError | null>(null);
  const [isBusy, setBusy] = useState(false);
  const [author, setAuthor] = useState(rememberedAuthor());
  const card = useRef<HTMLElement>(null);
  useLayoutEffect(() => {
    const measure = () => props.onHeight(card.current?.offsetHeight ?? 0);
    const observer = new ResizeObserver(measure);
    observer.observe(card.current!);
    measure();
    return () => observer.disconnect();
  }, []);
  const features = [...chosen.values()];
  const links = () => features.map((one) => location.origin + featurePath(transcoder, one.layer, one.index)).join("\n");
  const label = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    setTold(null);
    props.onSay("");
    setProblem(null);
    rememberAuthor(author);
    try {
      const answer = await post<Told>(`/api/features/${encodeURIComponent(transcoder)}/labels`, { text, author, features });
      const others = new Map(answer.conflicts.map((one) => [`${one.layer}-${one.index}`, one.text]));
      const failed = new Set(answer.failures.map((one) => `${one.layer}-${one.index}`));
      const labelled = [...chosen].filter(([key]) => !others.has(key) && !failed.has(key));
      for (const [, one] of labelled) props.onLabel(one.layer, one.index, { text: text.trim(), is_human: true, scores: {} });
      setTold(answer);
      props.onSay(`${count(answer.num_labelled)} labelled “${text.trim()}”`);
      // What somebody else labelled meanwhile stays chosen, and is labelled over once that was seen; so does what was chosen meanwhile.
      props.onChange((now) => {
        const next = new Map(now);
        for (const [key] of labelled) next.delete(key);
        for (const [key, seen] of others) {
          const one = next.get(key);
          if (one) next.set(key, { ...one, seen });
        }
        return next;
      });
      if (answer.conflicts.length + answer.failures.length === 0) setText("");
    } catch (error) {
      setProblem(toApiError(error));
    }
    setBusy(false);
  };
  return (
    <section class="selection card" aria-label="Chosen features" ref={card}>
      <div class="row">
        <b data-stat="chosen">{count(features.length)} chosen</b>
        <span class="row">
          <CopyButton name="Copy links" text={links} />
          <CopyButton name="Copy names" text={() => features.map((one) => `${one.layer}-${one.index}`).join("\n")} />
          {features.length <= MOST ? <a class="button small" href={`/interpretation?${new URLSearchParams({ transcoder, features: features.map((one) => `${one.layer}-${one.index}`).join(",") })}`}>Label by a model</a> : null}
          <button type="button" class="button small quiet" onClick={() => props.onChange(() => new Map())}>Clear</button>
        </span>
      </div>
      <form class="label-form" onSubmit={(event) => void label(event)}>
        <label class="field grow"><span>Label them all</span><input type="text" required maxLength={500} value={text} onInput={(event) => setText(event.currentTarget.value)} /></label>
        <label class="field"><span>Your name (optional)</span><input type="text" maxLength={100} value={author} onInput={(event) => setAuthor(event.currentTarget.value)} /></label>
        <button type="submit" class="button primary" disabled={isBusy || text.trim() === "" || features.length > MOST}>{isBusy ? "Labelling…" : `Label ${count(features.length)}`}</button>
      </form>
      {features.length > MOST ? <p class="note">{count(MOST)} are labelled at once at most; more with <code>weft labels import</code>.</p> : null}
      {problem ? <Problem problem={problem} /> : null}
      {told && told.conflicts.length > 0 ? (
        <div class="problem" role="alert">
          <strong>labelled by somebody else meanwhile</strong>
          <span>{count(told.num_labelled)} {told.num_labelled === 1 ? "was" : "were"} labelled; these were not, and stay chosen. Label them again to put yours after theirs, which stay in the history:</span>
          <ul>{told.conflicts.map((one) => <li key={`${one.layer}-${one.index}`}>{shortName(one.layer, one.index)}: <span class="label-text">{one.text || "withdrawn"}</span></li>)}</ul>
        </div>
      ) : null}
      {told && told.failures.length > 0 ? (
        <div class="problem" role="alert">
          <strong>{count(told.failures.length)} could not be labelled</strong>
          <span>{count(told.num_labelled)} {told.num_labelled === 1 ? "was" : "were"} labelled; these were not, and stay chosen:</span>
          <ul>{told.failures.map((one) => <li key={`${one.layer}-${one.index}`}>{shortName(one.layer, one.index)}: {one.detail}</li>)}</ul>
        </div>
      ) : null}
    </section>
  );
}
