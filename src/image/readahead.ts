/**
 * Layers that are read in sequence are fetched ahead of their reader, by few long requests instead of one short one after
 * the other. How far ahead grows with what has been read in sequence, so that at most as much again is fetched in vain.
 */
import type { Blob, Residency } from "../blob/blob.ts";
import { isUsed } from "../blob/residency.ts";
import type { OpenImage } from "./open.ts";
import type { MissingRange } from "./tables.ts";

/** So many bytes in sequence are no coincidence. */
const LEAST_RUN = 1 << 20;
/** Bytes ahead of the reader: what comes in half a second, so that other reads on a slow link do not wait for long. */
const WINDOW_MS = 500;
const LEAST_WINDOW = 1 << 20;
const MOST_WINDOW = 16 << 20;
/** Fetches that make up a window: while one comes to its end, the other one fills the line. */
const STEPS = 2;
/** Readers of one layer that are told apart. */
const MOST_RUNS = 4;

/** Bytes that are read in sequence. */
interface Run {
  readonly begin: number;
  /** Where the reader is, as far as is known. */
  reader: number;
  /** Up to here everything has been asked for. */
  ahead: number;
}

/** The image, whose layers are fetched ahead of whoever reads them in sequence. */
export function withReadAhead(image: OpenImage): OpenImage {
  let closed = false;
  const layers = image.layers.map(({ blob }, layer) => {
    const ahead = (offset: number, length: number) => {
      if (closed) throw new Error("closed");
      return image.fetch({ layer, offset, length });
    };
    return blob.view.valid && new LayerReadAhead(blob, blob.view.valid, ahead);
  });
  return {
    ...image,
    fetch: (range: MissingRange) => {
      const fetched = image.fetch(range);
      if (range.damaged === undefined) layers[range.layer]?.missed(range.offset, range.length);
      return fetched;
    },
    close: () => {
      closed = true;
      return image.close();
    },
  };
}

export class LayerReadAhead {
  /** Most recently used first. */
  #runs: Run[] = [];
  #window = LEAST_WINDOW;
  #underWay = 0;

  constructor(
    private readonly blob: Pick<Blob, "size">,
    private readonly residency: Residency,
    private readonly fetch: (offset: number, length: number) => Promise<void>,
  ) {}

  /** A reader asked for bytes that were not here: whole refill units, except at the end. */
  missed(offset: number, length: number): void {
    const end = offset + length;
    const known = this.#runs.find((run) => run.begin <= offset && offset <= run.ahead);
    const run = known ?? { begin: offset, reader: end, ahead: end };
    this.#runs = [run, ...this.#runs.filter((other) => other !== run)].slice(0, MOST_RUNS);
    run.reader = Math.max(run.reader, end);
    run.ahead = Math.max(run.ahead, end);
    this.#extend(run);
  }

  #extend(run: Run): void {
    const length = run.reader - run.begin;
    if (length < LEAST_RUN || !this.#runs.includes(run)) return;
    const target = Math.min(this.blob.size, run.reader + this.#wholeUnits(Math.min(this.#window, length)));
    const step = this.#wholeUnits(this.#window / STEPS);
    // Not a little after every read: few long requests are the point. Readers are a little behind what has come.
    const least = Math.min(step / 2, this.blob.size - run.ahead);
    while (run.ahead < target && target - run.ahead >= least) {
      const offset = run.ahead;
      run.ahead = Math.min(offset + step, target);
      void this.#bring(run, offset, run.ahead - offset);
    }
  }

  async #bring(run: Run, offset: number, length: number): Promise<void> {
    const started = performance.now();
    this.#underWay++;
    try {
      await this.fetch(offset, length);
      this.#measure(length, performance.now() - started);
    } catch {
      // Whoever wants these bytes will be told; nothing more is fetched in vain.
      this.#runs = this.#runs.filter((other) => other !== run);
      return;
    } finally {
      this.#underWay--;
    }
    this.#follow(run);
    this.#extend(run);
  }

  /** @param elapsed milliseconds, in which about as much came for each of the others */
  #measure(length: number, elapsed: number): void {
    const window = (length * this.#underWay * WINDOW_MS) / Math.max(1, elapsed);
    this.#window = Math.max(LEAST_WINDOW, Math.min(MOST_WINDOW, (this.#window + window) / 2));
  }

  /** Readers that find their bytes do not tell; they leave marks. */
  #follow(run: Run): void {
    const { unit } = this.residency;
    while (run.reader < run.ahead && isUsed(this.residency, Math.floor(run.reader / unit))) {
      run.reader = Math.min((Math.floor(run.reader / unit) + 1) * unit, run.ahead);
    }
  }

  /** Rounded down, but to one at least. */
  #wholeUnits(length: number): number {
    return Math.max(1, Math.floor(length / this.residency.unit)) * this.residency.unit;
  }
}
