/** Consecutive bytes of a blob, over as many answers as it takes: one that breaks is followed by one for the rest. */
import type { HttpRequest, HttpResponse } from "./transport.ts";

/** How a request is sent; see `HttpRequest`. */
export type Sending = Required<Pick<HttpRequest, "attempt" | "deadline" | "signal">>;

/** An answer that is what was asked for, and its bytes in order. */
export interface Answer {
  readonly response: HttpResponse;
  readonly chunks: AsyncGenerator<Uint8Array, void>;
}

const NOTHING = new Uint8Array();

export class RangeBody {
  #answer: Answer | undefined;
  #abort = new AbortController();
  /** Came with the last chunk, and was not wanted yet. */
  #rest: Uint8Array = NOTHING;
  /** All bytes before were read. */
  #position = 0;

  /** @param open asks for the blob's bytes from `offset` on */
  constructor(private readonly open: (offset: number, sending: Sending) => Promise<Answer>) {}

  /**
   * Fills `target` with the bytes at `offset`; what was read before ended there. When it fails, a second call for the
   * same goes on with the first byte that did not come.
   * @returns `target`
   * @throws RequestError; what `open` throws.
   */
  async read(offset: number, target: Uint8Array, sending: Sending): Promise<Uint8Array> {
    const { signal, deadline } = sending;
    const stop = () => this.stop();
    signal.addEventListener("abort", stop);
    try {
      this.#position = Math.max(this.#position, offset);
      this.#answer?.response.watch.limit(deadline);
      for (const end = offset + target.length; this.#position < end; ) {
        const chunk = await this.#next(sending);
        // Somebody else brought these bytes.
        signal.throwIfAborted();
        const part = chunk.subarray(0, end - this.#position);
        target.set(part, this.#position - offset);
        this.#position += part.length;
        this.#rest = chunk.subarray(part.length);
      }
      this.#answer?.response.watch.limit();
      return target;
    } catch (error) {
      // Otherwise it was stopped, and another answer may be under way already.
      if (!signal.aborted) this.stop();
      throw error;
    } finally {
      signal.removeEventListener("abort", stop);
    }
  }

  /** Lets the connection be used again, if nothing more comes by it. */
  async finish(): Promise<void> {
    await this.#answer?.chunks.next().catch(() => {});
  }

  /** Gives up the answer that is under way, if any. */
  stop(): void {
    this.#abort.abort();
    this.#abort = new AbortController();
    this.#answer = undefined;
    this.#rest = NOTHING;
  }

  async #next(sending: Sending): Promise<Uint8Array> {
    if (this.#rest.length > 0) return this.#rest;
    const answer =
      this.#answer ?? (await this.open(this.#position, { ...sending, signal: this.#abort.signal }));
    sending.signal.throwIfAborted();
    this.#answer = answer;
    const { response, chunks } = answer;
    const { done, value } = await chunks.next();
    if (!done) return value;
    const error = response.error("E_REGISTRY", `the answer ended before byte ${this.#position}`, {
      transient: true,
    });
    response.onBreak?.(error);
    throw error;
  }
}
