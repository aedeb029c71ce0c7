/** Arithmetic on `CacheStats`. */
import type { CacheStats } from "./blob.ts";

export const emptyStats = (): CacheStats => ({
  fetchedBytes: 0,
  requests: 0,
  hits: 0,
  misses: 0,
  damaged: 0,
  evicted: 0,
  refused: 0,
});

/** Adds `more` to `sum`, which it returns. */
export function addStats(sum: CacheStats, more: CacheStats): CacheStats {
  for (const key of Object.keys(sum) as (keyof CacheStats)[]) sum[key] += more[key];
  return sum;
}
