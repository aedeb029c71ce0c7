/**
 * The background download of one device (cache-download-prefetch.md section 5.1): after a while, its layers are completed
 * one after another, at a bounded rate. Nothing waits for it; what fails is tried again some time, or left remote.
 */
import { consola } from "consola";
import type { DownloadConfig } from "../service/config.ts";
import type { FileCache } from "./cache.ts";
import { type DownloadTarget, LayerDownload } from "./download.ts";

/** Between two looks at a layer that somebody else is at work on, and after a failure; it doubles with each. */
const RETRY_MS = 500;
const LONGEST_RETRY_MS = 60_000;
const MIB = 1 << 20;
/** Bounds of `blockSize`: a block is held in memory. */
const SMALLEST_BLOCK = 4096;
const LARGEST_BLOCK = 16 * MIB;
/** What a timer takes. */
const LONGEST_SLEEP_MS = 2 ** 31 - 1;

/** What a device's background download has done. */
export interface DownloadStats {
  /** Layers to complete, and those that are. */
  readonly layers: number;
  readonly completed: number;
  /** Layers that were given up after the last try. */
  readonly failed: number;
  /** Bytes fetched, and copied out of the cache. */
  readonly fetchedBytes: number;
  readonly copiedBytes: number;
}

export class BackgroundDownload {
  readonly #abort = new AbortController();
  readonly #layers: number;
  readonly #work: Promise<void>;
  #completed = 0;
  #failed = 0;
  #fetchedBytes = 0;
  #copiedBytes = 0;
  /** When the bytes asked for so far may have come. */
  #paced = 0;

  /** Starts. */
  constructor(
    targets: readonly DownloadTarget[],
    cache: FileCache,
    private readonly config: DownloadConfig,
  ) {
    this.#layers = targets.length;
    const limits = {
      blockSize: Math.min(Math.max(config.blockSize, SMALLEST_BLOCK), LARGEST_BLOCK),
      signal: this.#abort.signal,
      pace: (bytes: number) => this.#pace(bytes),
      progress: (fetched: number, copied: number) => {
        this.#fetchedBytes += fetched;
        this.#copiedBytes += copied;
      },
    };
    this.#work = this.#run(targets.map((target) => new LayerDownload(target, cache, limits))).catch(
      (error) => {
        if (!this.#abort.signal.aborted) consola.error(`the background download ended: ${error}`);
      },
    );
  }

  stats(): DownloadStats {
    return {
      layers: this.#layers,
      completed: this.#completed,
      failed: this.#failed,
      fetchedBytes: this.#fetchedBytes,
      copiedBytes: this.#copiedBytes,
    };
  }

  /** Ends what is under way. What was fetched is gone on with another time. */
  async stop(): Promise<void> {
    this.#abort.abort();
    await this.#work;
  }

  async #run(layers: readonly LayerDownload[]): Promise<void> {
    const { delay, delayExtra, tryCnt } = this.config;
    // 0 or less means the default, as upstream has it.
    const extra = Math.floor(Math.random() * (delayExtra > 0 ? delayExtra : 30));
    await this.#sleep((Math.max(0, delay) + extra) * 1000);
    const queue = layers.map((layer) => ({ layer, failures: 0 }));
    for (let pause = RETRY_MS; queue.length > 0; ) {
      const next = queue.shift() as (typeof queue)[number];
      const outcome = await this.#attempt(next.layer);
      if (outcome === "complete") {
        pause = RETRY_MS;
        continue;
      }
      if (outcome === "failed" && ++next.failures >= tryCnt) {
        this.#failed++;
        consola.error(`${next.layer.target.origin.name}: not downloaded after ${tryCnt} tries, stays remote`);
        continue;
      }
      queue.push(next);
      await this.#sleep(pause);
      pause = Math.min(2 * pause, LONGEST_RETRY_MS);
    }
  }

  async #attempt(layer: LayerDownload): Promise<"complete" | "busy" | "failed"> {
    const { name, size } = layer.target.origin;
    try {
      if (!(await layer.attempt())) return "busy";
    } catch (error) {
      this.#abort.signal.throwIfAborted();
      consola.warn(`the download of ${name} failed: ${error instanceof Error ? error.message : error}`);
      return "failed";
    }
    this.#completed++;
    consola.info(`${name}: all ${size} bytes are in ${layer.target.directory}`);
    return "complete";
  }

  async #pace(bytes: number): Promise<void> {
    const { maxMBps } = this.config;
    if (maxMBps <= 0) return;
    const now = performance.now();
    const start = Math.max(now, this.#paced);
    this.#paced = start + (1000 * bytes) / (maxMBps * MIB);
    await this.#sleep(this.#paced - now);
  }

  /** @throws the signal's reason */
  async #sleep(milliseconds: number): Promise<void> {
    const { signal } = this.#abort;
    signal.throwIfAborted();
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, Math.min(milliseconds, LONGEST_SLEEP_MS));
    const stop = () => resolve();
    signal.addEventListener("abort", stop);
    await promise;
    clearTimeout(timer);
    signal.removeEventListener("abort", stop);
    signal.throwIfAborted();
  }
}
