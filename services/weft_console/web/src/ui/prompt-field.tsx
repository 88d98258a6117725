/** A field for a text of any number of lines, as high as what stands in it. Enter sends it, Shift and Enter begins a line. */
import { useLayoutEffect, useRef } from "preact/hooks";

export const MAX_PROMPT = 20_000;

export function PromptField(props: { name: string; value: string; onInput: (text: string) => void }) {
  const area = useRef<HTMLTextAreaElement>(null);
  useLayoutEffect(() => {
    const { current } = area;
    if (!current) return;
    current.style.height = "auto";
    // Its border is no part of what it scrolls.
    current.style.height = `${current.scrollHeight + current.offsetHeight - current.clientHeight}px`;
  }, [props.value]);
  return (
    <label class="field grow">
      <span>{props.name}</span>
      <textarea class="mono prompt-field" ref={area} rows={1} required maxLength={MAX_PROMPT} placeholder="The capital of France is" value={props.value}
        onInput={(event) => props.onInput(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
          event.preventDefault();
          event.currentTarget.form?.requestSubmit();
        }} />
    </label>
  );
}
