/** A name for a group of features, proposed from what their labels share. */

export interface NamedBy {
  text: string;
  /** The more, the likelier its words are taken where nothing is shared. */
  weight: number;
}

export interface Proposal {
  name: string;
  /** Members that have a label. */
  numLabelled: number;
  numMembers: number;
}

/** Longest phrase, in words. */
const LONGEST = 4;
const MOST_PARTS = 2;
const MAX_NAME = 120;
/** They hold a phrase together and say nothing at its ends. */
const SMALL = new Set("a about an and are as at be by for from in into is it its of on or that the their these this those to when where which with".split(" "));
/** Every label has them: alone they name no group. */
const COMMON = new Set("activate activation active concept context feature fire mention occurrence phrase reference referring related relating specific term text token usage various word".split(" "));

interface Phrase {
  words: string[];
  /** As the first label has it. */
  shown: string;
  /** Labels that have it. */
  support: number;
  order: number;
}

/** Members are one a feature; those without a label are null. Null where no member has one. */
export function proposeName(members: (NamedBy | null)[]): Proposal | null {
  const labelled = members.filter((member): member is NamedBy => member !== null && member.text.trim() !== "");
  if (labelled.length === 0) return null;
  const shared = sharedPhrases(labelled.map((label) => label.text));
  const name = shared.length > 0 ? shared.map((phrase) => phrase.shown).join(", ") : strongest(labelled);
  return { name: name.length > MAX_NAME ? `${name.slice(0, MAX_NAME - 1)}…` : name, numLabelled: labelled.length, numMembers: members.length };
}

/** Where labels share nothing, the weightiest one speaks for all, and says that there are others. */
function strongest(labelled: NamedBy[]): string {
  const first = labelled.reduce((best, label) => (label.weight > best.weight ? label : best));
  const others = new Set(labelled.map((label) => label.text)).size - 1;
  return others > 0 ? `${first.text} and ${others} other${others > 1 ? "s" : ""}` : first.text;
}

/** The phrases that most labels have: at least two of them, and at least half. */
function sharedPhrases(texts: string[]): Phrase[] {
  const phrases = new Map<string, Phrase>();
  for (const text of texts) {
    const seen = new Set<string>();
    for (const { words, shown } of phrasesOf(text)) {
      const key = words.join(" ");
      if (seen.has(key)) continue;
      seen.add(key);
      const known = phrases.get(key);
      if (known) known.support++;
      else phrases.set(key, { words, shown, support: 1, order: phrases.size });
    }
  }
  const needed = Math.max(2, Math.ceil(texts.length / 2));
  const ranked = [...phrases.values()]
    .filter((phrase) => phrase.support >= needed)
    .sort((one, other) => other.support - one.support || other.words.length - one.words.length || one.order - other.order);
  const chosen: Phrase[] = [];
  for (const phrase of ranked) {
    const taken = new Set(chosen.flatMap((one) => one.words));
    if (phrase.words.some((word) => !SMALL.has(word) && taken.has(word))) continue;
    chosen.push(phrase);
    if (chosen.length === MOST_PARTS) break;
  }
  return chosen;
}

function phrasesOf(text: string): { words: string[]; shown: string }[] {
  const found = [...text.matchAll(/[\p{L}\p{N}]+(?:['’-][\p{L}\p{N}]+)*/gu)].map((match) => ({ word: stem(match[0]), start: match.index, end: match.index + match[0].length }));
  const phrases: { words: string[]; shown: string }[] = [];
  for (let first = 0; first < found.length; first++) {
    for (let last = first; last < Math.min(found.length, first + LONGEST); last++) {
      // What stands between words may be more than a blank: then they are no phrase.
      if (last > first && text.slice(found[last - 1]!.end, found[last]!.start).trim() !== "") break;
      const words = found.slice(first, last + 1).map((one) => one.word);
      if (SMALL.has(words[0]!) || SMALL.has(words[words.length - 1]!)) continue;
      if (words.every((word) => SMALL.has(word) || COMMON.has(word))) continue;
      phrases.push({ words, shown: text.slice(found[first]!.start, found[last]!.end) });
    }
  }
  return phrases;
}

/** Lower case, and one of several. */
function stem(word: string): string {
  const lower = word.toLowerCase();
  if (lower.length > 4 && lower.endsWith("ies")) return `${lower.slice(0, -3)}y`;
  return lower.length > 3 && lower.endsWith("s") && !lower.endsWith("ss") ? lower.slice(0, -1) : lower;
}
