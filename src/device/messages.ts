/** What the main thread and an I/O worker say to each other. Descriptors are valid in both: threads share them. */
import type { ErrorCode } from "../error.ts";
import type { MissingRange } from "../image/tables.ts";
import type { CounterMemory } from "./counters.ts";

/** What a worker is started with. */
export interface WorkerSetup {
  readonly role: "io";
  /** Signalled after every message to the worker, which otherwise sleeps in native code and hears nothing. */
  readonly wake: number;
  readonly port: MessagePort;
}

export type ToWorker<Description> =
  | {
      readonly kind: "serve";
      readonly device: number;
      /** Descriptor of the FUSE connection; the worker closes it. */
      readonly fd: number;
      /** Name of the served file. */
      readonly name: string;
      readonly disk: Description;
      readonly counters: CounterMemory;
    }
  | { readonly kind: "settled"; readonly device: number; readonly fetch: number; readonly failed: boolean }
  | { readonly kind: "stop" };

export type FromWorker =
  | { readonly kind: "serving"; readonly device: number }
  | {
      readonly kind: "missing";
      readonly device: number;
      readonly fetch: number;
      readonly range: MissingRange;
    }
  /** The kernel let go of the device, or the worker had to. */
  | { readonly kind: "closed"; readonly device: number; readonly error?: PlainError };

/** An error as plain data: classes do not survive posting. */
export interface PlainError {
  readonly code: ErrorCode;
  readonly message: string;
}
