/** Small parts that every page shares. */
import type { ComponentChildren } from "preact";
import { useEffect, useState } from "preact/hooks";
import type { ApiError } from "../api";

export function Stat(props: { label: string; value: string; title?: string; id?: string }) {
  return (
    <div class="stat" title={props.title}>
      <dt>{props.label}</dt>
      <dd data-stat={props.id}>{props.value}</dd>
    </div>
  );
}

export function Problem(props: { problem: ApiError | string; onRetry?: () => void }) {
  const [isTrying, setTrying] = useState(false);
  // Another answer, though it may say the same.
  useEffect(() => setTrying(false), [props.problem]);
  const isText = typeof props.problem === "string";
  return (
    <div class="problem" role="alert">
      {isText ? null : <strong>{(props.problem as ApiError).code.toLowerCase().replace(/_/g, " ")}</strong>}
      <span>{isText ? (props.problem as string) : (props.problem as ApiError).message}</span>
      {props.onRetry ? <button type="button" class="button small" onClick={() => { setTrying(true); props.onRetry!(); }}>{isTrying ? "Trying…" : "Try again"}</button> : null}
    </div>
  );
}

export function Loading(props: { what: string }) {
  return <p class="loading" role="status">Loading {props.what}…</p>;
}

export function Empty(props: { title: string; children: ComponentChildren }) {
  return (
    <div class="empty">
      <h2>{props.title}</h2>
      <p>{props.children}</p>
    </div>
  );
}

/** Asks for the next page of a list, where there is one. */
export function ShowMore({ more }: { more: { next: string; isBusy: boolean; load: () => void } }) {
  return more.next ? <button type="button" class="button" onClick={more.load}>{more.isBusy ? "Loading…" : "Show more"}</button> : null;
}

export function StateBadge(props: { state: string }) {
  return <span class={`badge is-${props.state}`}>{props.state}</span>;
}

export function ProgressBar(props: { done: number; total: number; label: string }) {
  const share = props.total > 0 ? Math.min(1, props.done / props.total) : 0;
  return (
    <div class="progress" role="progressbar" aria-label={props.label} aria-valuemin={0} aria-valuemax={100} aria-valuenow={Math.round(100 * share)}>
      <div class="progress-bar" style={{ width: `${100 * share}%` }} />
    </div>
  );
}

export function PageHead(props: { title: ComponentChildren; note?: ComponentChildren; children?: ComponentChildren }) {
  return (
    <header class="page-head">
      <div>
        <h1>{props.title}</h1>
        {props.note ? <p class="note">{props.note}</p> : null}
      </div>
      {props.children}
    </header>
  );
}
