/**
 * A running quantile of times: a histogram with buckets that each are an eighth wider than the one before, whose counts are
 * halved now and then, so that what was long ago fades. Constant memory; the estimate is at most an eighth too large.
 */

/** Buckets for each doubling, from 1/16 ms to over an hour. */
const PER_DOUBLING = 6;
const SMALLEST = 1 / 16;
const BUCKETS = 26 * PER_DOUBLING;
/** Observations after which all counts are halved. */
const FADING = 1000;

export class Quantile {
  readonly #counts = new Float64Array(BUCKETS);
  #total = 0;
  #fresh = 0;
  #value = 0;
  /** Observations ever. */
  count = 0;

  /** @param share of the observations that are below the value, such as 0.99 */
  constructor(private readonly share: number) {}

  /** Milliseconds; 0 as long as nothing is known. */
  get value(): number {
    return this.#value;
  }

  add(milliseconds: number): void {
    const exact = Math.ceil(Math.log2(milliseconds / SMALLEST) * PER_DOUBLING);
    this.#counts[Math.min(Math.max(exact, 0), BUCKETS - 1)]++;
    this.#total++;
    this.count++;
    if (++this.#fresh === FADING) {
      for (let i = 0; i < BUCKETS; i++) this.#counts[i] /= 2;
      this.#total /= 2;
      this.#fresh = 0;
    }
    this.#value = this.#find();
  }

  #find(): number {
    let above = this.#total * (1 - this.share);
    let bucket = BUCKETS - 1;
    while (bucket > 0 && above >= this.#counts[bucket]) above -= this.#counts[bucket--];
    return SMALLEST * 2 ** (bucket / PER_DOUBLING);
  }
}
