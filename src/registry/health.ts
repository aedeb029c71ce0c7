/** Whether a way to a registry's content works, from what became of the requests that took it. */

/** Milliseconds for which a way that failed is tried last; doubled with each failure that follows. */
const FIRST_REST_MS = 5_000;
const LONGEST_REST_MS = 300_000;

export class Health {
  #failures = 0;
  #restUntil = 0;
  #reached: Promise<void> | undefined;

  /** @param dial checks that somebody listens at all; called before the first request, and before the next after a failure */
  constructor(private readonly dial: () => Promise<void> = async () => {}) {}

  /** It failed a short time ago. */
  get resting(): boolean {
    return performance.now() < this.#restUntil;
  }

  /** @throws what `dial` throws */
  reach(): Promise<void> {
    this.#reached ??= this.dial();
    return this.#reached;
  }

  succeeded(): void {
    this.#failures = 0;
    this.#restUntil = 0;
  }

  /** Returns the milliseconds it will rest, or undefined when it was resting already. */
  failed(): number | undefined {
    if (this.resting) return undefined;
    const rest = Math.min(LONGEST_REST_MS, FIRST_REST_MS * 2 ** this.#failures++);
    this.#restUntil = performance.now() + rest;
    this.#reached = undefined;
    return rest;
  }
}
