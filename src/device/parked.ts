/**
 * Reads that wait for bytes from the network. Each missing range is asked for once, whoever waits for it, and a read
 * goes on when all of its ranges are settled. The kernel bounds how many requests it lets wait, and so this.
 */
import type { MissingRange } from "../image/tables.ts";

interface Fetch<Read> {
  readonly key: string;
  readonly reads: Set<Read>;
}

interface Wait {
  /** Fetches not settled yet. */
  readonly fetches: Set<number>;
  failed: boolean;
}

export class ParkedReads<Read extends object> {
  private readonly fetches = new Map<number, Fetch<Read>>();
  private readonly byRange = new Map<string, number>();
  private readonly waits = new Map<Read, Wait>();
  private next = 1;

  /** `ask` is called with the number of a new fetch, which `settle` is to be called with some time. */
  constructor(private readonly ask: (fetch: number, range: MissingRange) => void) {}

  get size(): number {
    return this.waits.size;
  }

  park(read: Read, missing: readonly MissingRange[]): void {
    const wait: Wait = { fetches: new Set(), failed: false };
    this.waits.set(read, wait);
    for (const range of missing) {
      const number = this.numberOf(range);
      this.fetches.get(number)?.reads.add(read);
      wait.fetches.add(number);
    }
  }

  private numberOf(range: MissingRange): number {
    const key = `${range.layer}:${range.offset}:${range.length}:${range.damaged ?? "missing"}`;
    const known = this.byRange.get(key);
    if (known !== undefined) return known;
    const number = this.next++;
    this.byRange.set(key, number);
    this.fetches.set(number, { key, reads: new Set() });
    this.ask(number, range);
    return number;
  }

  /** Notes a fetch's end and returns the reads that wait for nothing more; `failed` if any of their fetches failed. */
  settle(number: number, failed: boolean): { read: Read; failed: boolean }[] {
    const fetch = this.fetches.get(number);
    if (!fetch) return [];
    this.fetches.delete(number);
    this.byRange.delete(fetch.key);
    const ready: { read: Read; failed: boolean }[] = [];
    for (const read of fetch.reads) {
      const wait = this.waits.get(read) as Wait;
      wait.fetches.delete(number);
      wait.failed ||= failed;
      if (wait.fetches.size > 0) continue;
      this.waits.delete(read);
      ready.push({ read, failed: wait.failed });
    }
    return ready;
  }

  /** Forgets the first read that `matches`; its fetches go on. */
  cancel(matches: (read: Read) => boolean): Read | undefined {
    for (const [read, wait] of this.waits) {
      if (!matches(read)) continue;
      this.waits.delete(read);
      for (const number of wait.fetches) this.fetches.get(number)?.reads.delete(read);
      return read;
    }
    return undefined;
  }
}
