/** Stretches of text with a feature's activation on every token, as colour and, under the pointer or the cursor, as a number. */
import { useRef, useState } from "preact/hooks";
import { figure, percent } from "../format";
import { showInText, showToken } from "../ui/token-text";
import type { FeatureExample } from "./types";

export function TokenLines(props: { label: string; examples: FeatureExample[]; most: number; isQuiet?: boolean }) {
  const [said, setSaid] = useState("");
  return (
    <>
      <ol class="token-lines" aria-label={props.label}>
        {props.examples.map((example) => (
          <TokenLine key={`${example.sequence} ${example.start} ${example.peak_at}`} example={example} most={props.most} isQuiet={props.isQuiet ?? false} onSay={setSaid} />
        ))}
      </ol>
      <p class="visually-hidden" role="status">{said}</p>
    </>
  );
}

/** About as wide as what a token tells of itself. */
const HINT_PX = 220;

/** Where there is no room to the right, a token tells of itself to the left. */
function turnHint(token: Element | null | undefined): void {
  if (token instanceof HTMLElement) token.dataset.side = token.getBoundingClientRect().left > document.documentElement.clientWidth - HINT_PX ? "left" : "right";
}

function TokenLine(props: { example: FeatureExample; most: number; isQuiet: boolean; onSay: (text: string) => void }) {
  const { tokens, activations, peak, peak_at: peakAt, sequence, start } = props.example;
  const [cursor, setCursor] = useState<number | null>(null);
  const text = useRef<HTMLSpanElement>(null);
  const valueOf = (at: number) => activations[at] ?? 0;
  const shown = (at: number) => (valueOf(at) > 0 ? `${figure(valueOf(at))} · ${percent(valueOf(at) / props.most, 0)} of its largest` : "0");
  const go = (at: number) => {
    const next = Math.max(0, Math.min(tokens.length - 1, at));
    setCursor(next);
    turnHint(text.current?.children[next]);
    props.onSay(`${showToken(tokens[next]!)}, activation ${shown(next)}`);
  };
  const onKey = (event: KeyboardEvent) => {
    const from = cursor ?? Math.max(0, peakAt);
    if (event.key === "ArrowRight") go(cursor === null ? from : from + 1);
    else if (event.key === "ArrowLeft") go(cursor === null ? from : from - 1);
    else if (event.key === "Home") go(0);
    else if (event.key === "End") go(tokens.length - 1);
    else if (event.key === "Escape") setCursor(null);
    else return;
    event.preventDefault();
  };
  return (
    <li class="token-line">
      <span class="token-peak" title={`Sequence ${sequence}, from token ${start} on`}>{props.isQuiet ? "quiet" : figure(peak)}</span>
      {/* A line is one stop of the keyboard; arrows go over its tokens. */}
      <span class="token-text" ref={text} tabIndex={0} role="group" onPointerOver={(event) => turnHint((event.target as Element).closest(".tok"))} aria-label={props.isQuiet ? "Stretch without activation" : `Stretch with peak ${figure(peak)}; arrows read the tokens`} onKeyDown={onKey} onBlur={() => setCursor(null)}>
        {tokens.map((token, at) => (
          <span key={at} data-value={shown(at)}
            class={`tok${valueOf(at) > 0 ? " is-active" : ""}${at === peakAt ? " is-peak" : ""}${at === cursor ? " is-at" : ""}`}
            style={valueOf(at) > 0 ? { "--heat": String(Math.round((100 * valueOf(at)) / props.most)) } : undefined}>
            {showInText(token)}
          </span>
        ))}
      </span>
    </li>
  );
}
