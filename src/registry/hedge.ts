/**
 * Hedged requests: when an answer takes longer than nearly all answers before it, the same is asked once more on another
 * connection, and whoever answers first is believed. One slow server behind a load balancer, one lost packet or one
 * connection that died unnoticed then costs little. (J. Dean and L. Barroso, "The Tail at Scale", 2013.)
 *
 * Two rules, so that hedging never becomes the overload that it hides:
 * - A request slower than the 99th percentile gets a second one, as long as all of these are at most 5 % of the requests.
 * - When a request is silent for much longer than that, and nothing else has been answered for a second either, the
 *   connections are probably dead. Then a fresh request is sent every now and then, one for all that wait; the
 *   first that is answered tells that the server is back, and all that wait ask again.
 */
import { Quantile } from "./quantile.ts";

/** Share of requests that may be sent a second time because they are slow, and how many may be saved up. */
const EXTRA_SHARE = 0.05;
const MOST_SAVED = 8;
/** Answers that have to be known before the percentile means anything. */
const WARM = 50;
/** A request is silent after the 99th percentile times this, but not before `SILENT_MS`. */
const SILENT_FACTOR = 4;
const SILENT_MS = 1000;
/** … and for as long as the percentile is not known, not before: */
const SILENT_COLD_MS = 5000;
/** Pause between fresh requests while nothing is answered. */
const PROBE_MS = 1000;

/** Sends the request; `extra` is false for the first one. Must end soon after `signal` is aborted. */
export type Send<T> = (signal: AbortSignal, extra: boolean) => Promise<T>;

/** What is known of the answers of one host. */
export class Hedge {
  /** By the order of magnitude of what is transferred. */
  readonly #latencies = new Map<number, Quantile>();
  #allowance = 0;
  #lastAnswer = performance.now();
  #lastProbe = 0;
  /** Of the races that are under way: sends a fresh request. */
  readonly #waiting = new Set<() => void>();

  /**
   * The first good answer; the requests that are still under way are aborted. Fails when all that were sent have failed,
   * with the error of the first. It is `send` that has to see to an end of them.
   * @param length bytes to be transferred: requests are compared with those of about the same length
   */
  race<T>(length: number, send: Send<T>): Promise<T> {
    return this.#run(length, send, true);
  }

  /**
   * The same for a part of a longer answer, whose other parts were just as quick: an extra request is sent only when all
   * is silent, and nothing is learned of how long requests take.
   */
  watch<T>(length: number, send: Send<T>): Promise<T> {
    return this.#run(length, send, false);
  }

  #run<T>(length: number, send: Send<T>, hurried: boolean): Promise<T> {
    const latency = this.#latencyOf(length);
    if (hurried) this.#allowance = Math.min(MOST_SAVED, this.#allowance + EXTRA_SHARE);
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    const started = performance.now();
    const running = new Set<AbortController>();
    let latest: AbortController | undefined;
    let failure: unknown;
    let alarm: Timer | undefined;

    const end = () => {
      clearTimeout(alarm);
      this.#waiting.delete(refresh);
      for (const controller of running) controller.abort();
      running.clear();
    };
    const launch = (extra: boolean) => {
      const controller = new AbortController();
      running.add(controller);
      if (extra) latest = controller;
      send(controller.signal, extra).then(
        (value) => {
          if (!running.delete(controller)) return;
          end();
          if (hurried) latency.add(performance.now() - started);
          this.#answered(started, extra);
          resolve(value);
        },
        (error) => {
          if (!extra) failure = error;
          if (!running.delete(controller) || running.size > 0) return;
          end();
          reject(failure);
        },
      );
    };
    /** In place of the extra request that was sent before, if any: the first one is the most patient. */
    const refresh = () => {
      if (latest !== undefined && running.delete(latest)) latest.abort();
      launch(true);
    };
    const watch = () => {
      if (this.#mayProbe()) refresh();
      alarm = setTimeout(watch, PROBE_MS / 4);
    };
    const warm = latency.count >= WARM;
    const slow = latency.value;
    const silent = warm ? Math.max(SILENT_MS, SILENT_FACTOR * slow) : SILENT_COLD_MS;
    const hurry = () => {
      if (this.#spend()) launch(true);
      alarm = setTimeout(watch, silent - slow);
    };
    alarm = warm && hurried ? setTimeout(hurry, slow) : setTimeout(watch, silent);
    this.#waiting.add(refresh);
    launch(false);
    return promise;
  }

  #latencyOf(length: number): Quantile {
    const magnitude = Math.ceil(Math.log2(length));
    let latency = this.#latencies.get(magnitude);
    if (latency === undefined) {
      latency = new Quantile(0.99);
      this.#latencies.set(magnitude, latency);
    }
    return latency;
  }

  #answered(started: number, extra: boolean): void {
    const now = performance.now();
    const back = extra && now - this.#lastAnswer > SILENT_MS && started < this.#lastProbe;
    this.#lastAnswer = now;
    if (back) for (const refresh of [...this.#waiting]) refresh();
  }

  #spend(): boolean {
    if (this.#allowance < 1) return false;
    this.#allowance--;
    return true;
  }

  #mayProbe(): boolean {
    const now = performance.now();
    if (now - this.#lastAnswer < SILENT_MS || now - this.#lastProbe < PROBE_MS) return false;
    this.#lastProbe = now;
    return true;
  }
}
