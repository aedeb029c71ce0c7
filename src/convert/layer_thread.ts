/** A worker thread that builds layers, one after another, so that the main thread stays free for the network. */
import { isMainThread, parentPort, Worker } from "node:worker_threads";
import { type ErrorCode, OverlaybdError } from "../error.ts";
import { programEntry } from "../program.ts";
import { buildLayer, type LayerJob } from "./layer.ts";

/** What the thread is started with. */
export const LAYER_THREAD = { role: "layer" } as const;

type Answer =
  | { readonly size: number }
  | { readonly code?: ErrorCode; readonly message: string; readonly stack?: string };

export class LayerThread {
  readonly #thread: Worker;
  #answer: PromiseWithResolvers<number> | undefined;

  constructor(entry: string = programEntry) {
    this.#thread = new Worker(entry, { workerData: LAYER_THREAD });
    this.#thread.on("message", (answer: Answer) => this.#hear(answer));
    this.#thread.on("error", (error) => this.#answer?.reject(error));
    this.#thread.on("exit", () => this.#answer?.reject(new Error("the thread that builds layers ended")));
  }

  /**
   * Builds one layer; see `buildLayer`. Not before the last one is done.
   * @throws OverlaybdError
   */
  build(job: LayerJob): Promise<number> {
    this.#answer = Promise.withResolvers();
    this.#thread.postMessage(job);
    return this.#answer.promise;
  }

  #hear(answer: Answer): void {
    if ("size" in answer) this.#answer?.resolve(answer.size);
    else if (answer.code) this.#answer?.reject(new OverlaybdError(answer.code, answer.message));
    else this.#answer?.reject(Object.assign(new Error(answer.message), { stack: answer.stack }));
  }

  /** Ends the thread, which must have nothing to do. */
  async close(): Promise<void> {
    this.#answer = undefined;
    await this.#thread.terminate();
  }
}

/** Builds what it is asked to: all that such a thread does. */
export function serveLayers(): void {
  if (isMainThread || !parentPort) throw new Error("serveLayers belongs into a worker thread");
  const port = parentPort;
  port.on("message", async (job: LayerJob) => {
    try {
      port.postMessage({ size: await buildLayer(job) } satisfies Answer);
    } catch (error) {
      // Classes do not survive posting.
      const { message, stack } = error as Error;
      const refused = error instanceof Error && "syscall" in error;
      const code = error instanceof OverlaybdError ? error.code : refused ? "E_IO" : undefined;
      port.postMessage({ code, message, stack } satisfies Answer);
    }
  });
}
