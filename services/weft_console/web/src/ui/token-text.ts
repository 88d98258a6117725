/** Tokens as people can read them: what would not be seen, or would move what stands beside it, is shown by a sign. */

/** Control and format characters, among them those that turn the direction of text, and line and paragraph ends. */
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu;
/** They shape the letters beside them, and are seen by that. */
const JOINERS = /^[\u200c\u200d]$/;

/** Signs for line ends, tabs and characters without a shape; a no-break space is a space that says so. */
export function showUnseen(text: string): string {
  const isAlone = /^[\u200c\u200d]+$/.test(text);
  return text.replace(/\r/g, "␍").replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\u00a0/g, "⍽")
    .replace(UNSEEN, (one) => (JOINERS.test(one) && !isAlone ? one : `⟨${one.codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0")}⟩`));
}

/** A token that stands by itself: spaces at its ends have a sign too, and nothing at all has one. */
export function showToken(text: string): string {
  return showUnseen(text.replace(/^ +| +$/g, (spaces) => "·".repeat(spaces.length))) || "∅";
}

/** A token within running text: spaces stay spaces, and of a character that tokens share one has all and the others have nothing. */
export function showInText(text: string): string {
  return showUnseen(text);
}
