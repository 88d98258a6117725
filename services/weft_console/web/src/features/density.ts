import { figure, percent } from "../format";

/** A share of tokens in percent, with as many digits as it takes to tell it from nothing. */
export function density(share: number): string {
  if (share === 0) return "0%";
  return share >= 0.001 ? percent(share, 2) : `${figure(100 * share)}%`;
}
