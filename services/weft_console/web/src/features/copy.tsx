import { useState } from "preact/hooks";

/** Copies a text, and says that it did or why it could not. */
export function CopyButton({ name, text }: { name: string; text: () => string }) {
  const [said, setSaid] = useState("");
  const copy = () => {
    const done = (word: string) => {
      setSaid(word);
      window.setTimeout(() => setSaid(""), 2000);
    };
    // The clipboard is only there where the page is served safely: over TLS or from this machine.
    if (!navigator.clipboard) return done("No clipboard here");
    return navigator.clipboard.writeText(text()).then(() => done("Copied"), () => done("Not allowed"));
  };
  return <button type="button" class="button small" onClick={() => void copy()}><span aria-live="polite">{said || name}</span></button>;
}
