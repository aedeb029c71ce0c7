/** Whether a way to a registry's content works, from what became of the requests that took it. */

/** Milliseconds for which a way that failed is tried last; doubled with each failure that follows. */
const FIRST_REST_MS = 5_000;
const LONGEST_REST_MS = 300_000;

export class Health {
  /** In a row. */
  #failures = 0;
  #restUntil = 0;
  /** A request is finding out whether it works again. */
  #probing = false;
  #reached: Promise<void> | undefined;

  /** @param dial checks that somebody listens at all; called before the first request, and before the next after a failure */
  constructor(private readonly dial: () => Promise<void> = async () => {}) {}

  /**
   * Whether a request may take it before others: it works as far as is known. After a rest one request may, which has to
   * report what became of it.
   */
  admit(): boolean {
    if (this.#failures === 0) return true;
    if (this.#probing || performance.now() < this.#restUntil) return false;
    this.#probing = true;
    return true;
  }

  /** @throws what `dial` throws */
  reach(): Promise<void> {
    this.#reached ??= this.dial();
    return this.#reached;
  }

  succeeded(): void {
    this.#failures = 0;
    this.#probing = false;
  }

  /** What the request would have told, nobody waits for any more. */
  abandoned(): void {
    this.#probing = false;
  }

  /** Returns the milliseconds for which it will rest, or undefined when it is known already not to work. */
  failed(): number | undefined {
    this.#reached = undefined;
    if (this.#failures > 0 && !this.#probing) return undefined;
    this.#probing = false;
    const rest = Math.min(LONGEST_REST_MS, FIRST_REST_MS * 2 ** this.#failures++);
    this.#restUntil = performance.now() + rest;
    return rest;
  }
}
