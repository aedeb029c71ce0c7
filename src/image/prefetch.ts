/**
 * Fetching what a start is known to need before it is asked for. Reads of the disk come first: while one waits for the
 * network, few requests are on their way beside it, and never more bytes than the network brings in a moment.
 */
import { consola } from "consola";
import type { MissingRange } from "./tables.ts";
import type { WantedUnits } from "./wanted.ts";

/** Bytes on their way at the same time: to begin with, at least, at most. */
const FIRST_WINDOW = 1 << 20;
const SMALLEST_WINDOW = 512 << 10;
const LARGEST_WINDOW = 16 << 20;
/** Milliseconds that a request may take until there are too many of them, and below which there may be more. */
const SLOW_MS = 400;
const QUICK_MS = 150;
/** The window is filled by this many requests, so that there is always one on its way. */
const REQUESTS_PER_WINDOW = 4;
/** Requests beside a read that waits: one, and one more so that the network is not idle between two. */
const REQUESTS_BESIDE_READ = 2;
/** Most bytes in a request. */
const LARGEST_REQUEST = 4 << 20;
/** Requests that may fail one after another until no more are made. */
const MAX_FAILURES_IN_A_ROW = 8;

export interface PrefetchOutcome {
  bytes: number;
  requests: number;
  failures: number;
}

export class Prefetch {
  readonly #outcome: PrefetchOutcome = { bytes: 0, requests: 0, failures: 0 };
  #window = FIRST_WINDOW;
  /** Requests and bytes on their way. */
  #requests = 0;
  #bytes = 0;
  /** Reads of the disk that wait. */
  #demands = 0;
  #failuresInARow = 0;
  #stopped = false;
  #change = Promise.withResolvers<void>();

  /**
   * @param fetch brings bytes of a layer's blob to this machine.
   * @param concurrency most requests at the same time.
   */
  constructor(
    private readonly fetch: (range: MissingRange) => Promise<void>,
    private readonly concurrency: number,
  ) {}

  /** A fetch that a read waits for. */
  async demand(range: MissingRange): Promise<void> {
    this.#demands++;
    try {
      await this.fetch(range);
    } finally {
      this.#demands--;
      this.#changed();
    }
  }

  /** Fetches what is wanted, until done or stopped. Failures are logged, never thrown. */
  async run(wanted: Pick<WantedUnits, "take">): Promise<PrefetchOutcome> {
    while (!this.#stopped && this.#failuresInARow < MAX_FAILURES_IN_A_ROW) {
      const most = Math.min(LARGEST_REQUEST, Math.floor(this.#window / REQUESTS_PER_WINDOW));
      const range = wanted.take(most);
      if (range === null) break;
      while (!this.#stopped && !this.#mayStart(range.length)) await this.#change.promise;
      if (!this.#stopped) void this.#request(range);
    }
    while (this.#requests > 0) await this.#change.promise;
    return this.#outcome;
  }

  /** No more requests are made. */
  stop(): void {
    this.#stopped = true;
    this.#changed();
  }

  #mayStart(length: number): boolean {
    if (this.#requests === 0) return true;
    const most = Math.min(this.concurrency, this.#demands > 0 ? REQUESTS_BESIDE_READ : this.concurrency);
    return this.#requests < most && this.#bytes + length <= this.#window;
  }

  async #request(range: MissingRange): Promise<void> {
    this.#requests++;
    this.#bytes += range.length;
    const begin = performance.now();
    try {
      await this.fetch(range);
      this.#failuresInARow = 0;
      this.#outcome.requests++;
      this.#outcome.bytes += range.length;
      this.#adapt(performance.now() - begin, range.length);
    } catch (error) {
      this.#failuresInARow++;
      this.#outcome.failures++;
      if (!this.#stopped) consola.error(`prefetching failed: ${(error as Error).message}`);
    } finally {
      this.#requests--;
      this.#bytes -= range.length;
      this.#changed();
    }
  }

  #adapt(milliseconds: number, length: number): void {
    if (milliseconds < QUICK_MS) this.#window = Math.min(LARGEST_WINDOW, this.#window + length);
    else if (milliseconds > SLOW_MS) this.#window = Math.max(SMALLEST_WINDOW, this.#window * 0.75);
  }

  #changed(): void {
    this.#change.resolve();
    this.#change = Promise.withResolvers<void>();
  }
}
