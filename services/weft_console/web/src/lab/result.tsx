/** Both runs side by side: how the text goes on, and what the next token may be. */
import { figure, percent, signed } from "../format";
import { showToken } from "../ui/token-text";
import { idOf } from "../types";
import { Stat } from "../ui/parts";
import type { ContinuedToken, Steered } from "./ask";
import { featureName } from "./firing";

/** Whether the answer is of other changes than those that stand in the page now. */
export function Result({ result, prompt, isStale }: { result: Steered; prompt: string; isStale: boolean }) {
  const before = result.next_tokens.map((each) => each.probability_before);
  const after = result.next_tokens.map((each) => each.probability_after);
  const most = Math.max(...before, ...after, 1e-12);
  const same = sharedStart(result.undisturbed, result.changed);
  return (
    <section class={`lab-result${isStale ? " is-stale" : ""}`} aria-label="Undisturbed and changed" data-list="result">
      {isStale ? <p class="note" role="status">The changes are others by now. Run them to see what they do.</p> : null}
      <div class="lab-sides">
        <Side name="Undisturbed" prompt={prompt} tokens={result.undisturbed} same={same} id="undisturbed" />
        <Side name="Changed" prompt={prompt} tokens={result.changed} same={same} id="changed" />
      </div>
      <dl class="stats card">
        <Stat label="divergence of the next token" id="kl" value={`${figure(result.kl_divergence)} nats`} title="KL(undisturbed || changed)" />
        <Stat label="same tokens at first" id="same" value={`${same} of ${result.undisturbed.length}`} />
      </dl>
      <div class="card scroll" role="region" aria-label="Next token, table" tabIndex={0}>
        <table class="compact lab-next">
          <caption>The next token, undisturbed and changed</caption>
          <thead><tr><th scope="col">Token</th><th scope="col" colSpan={2}>undisturbed</th><th scope="col" colSpan={2}>changed</th><th scope="col" class="num" title="Change of the logit less the mean over the vocabulary">logit</th></tr></thead>
          <tbody>
            {result.next_tokens.map((each) => (
              <tr key={each.token_id}>
                <th scope="row" class="mono">{showToken(each.text)}</th>
                <td class="num">{percent(each.probability_before)}</td>
                <td class="lab-bar" aria-hidden="true"><i style={{ width: `${(100 * each.probability_before) / most}%` }} /></td>
                <td class="num">{percent(each.probability_after)}</td>
                <td class="lab-bar is-changed" aria-hidden="true"><i style={{ width: `${(100 * each.probability_after) / most}%` }} /></td>
                <td class={`num ${each.logit_change < 0 ? "is-negative" : "is-positive"}`}>{signed(each.logit_change, 2)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <details>
        <summary>What was changed</summary>
        <ul class="lab-made">
          {result.features.map((each) => {
            const [layer, index] = idOf(each.feature).split("-").map(Number);
            return (
              <li key={each.feature}>
                <b>{featureName({ layer: layer ?? 0, index: index ?? 0, label: each.label })}</b>{" "}
                {each.positions.length === 0 ? "nowhere: it is silent on this text" : each.positions.map((position, i) => `${showToken(result.tokens[position] ?? "")} ${figure(each.before[i]!)} → ${figure(each.after[i]!)}`).join(", ")}
                {each.added_after ? `; ${signed(each.added_after, 2)} at each token that follows` : ""}
              </li>
            );
          })}
        </ul>
      </details>
    </section>
  );
}

interface SideProps {
  name: string;
  prompt: string;
  tokens: ContinuedToken[];
  /** Tokens at first that both runs have. */
  same: number;
  id: string;
}

function Side({ name, prompt, tokens, same, id }: SideProps) {
  return (
    <article class="card lab-side" aria-label={name}>
      <h3>{name}</h3>
      <p class="lab-text mono" data-stat={`text-${id}`}>
        <span class="lab-prompt">{prompt}</span>
        {tokens.map((token, at) => (
          <span key={at} class={at >= same ? "is-other" : ""} title={`${showToken(token.text)} ${percent(token.probability)}`}>{token.text}</span>
        ))}
      </p>
    </article>
  );
}

/** How many tokens two continuations have in common from the start. */
export function sharedStart(one: { token_id: number }[], other: { token_id: number }[]): number {
  const end = one.findIndex((token, at) => token.token_id !== other[at]?.token_id);
  return end < 0 ? one.length : end;
}
