/** Writing to an output file: the only place where the layer formats' bytes meet a descriptor. Blocking. */
import { ftruncateSync, writeSync } from "node:fs";
import { OverlaybdError } from "../error.ts";
import { writeFromMemory } from "../native/range.ts";
import type { ByteSink } from "./sink.ts";

/** An open output file; `path` is what error messages call it. */
export interface Output {
  readonly fd: number;
  readonly path: string;
}

/** A sink that ends in an output file. */
export interface OutputSink extends ByteSink {
  /** Bytes of the file that this sink takes up; known after `finish`. */
  readonly storedSize: number;
  /** Frees what the sink holds; safe at any time, also twice. What was not finished is lost. */
  close(): void;
}

/** Runs a step of writing the file at `path`; what the operating system refuses becomes E_IO. */
export function writing<T>(path: string, step: () => T): T {
  try {
    return step();
  } catch (cause) {
    if (cause instanceof OverlaybdError || !(cause instanceof Error && "code" in cause)) throw cause;
    throw new OverlaybdError("E_IO", `writing ${path} failed: ${cause.message}`, { cause });
  }
}

/** Writes all of `bytes` at `offset`. @throws OverlaybdError E_IO */
export function writeAt(output: Output, bytes: Uint8Array, offset: number): void {
  writing(output.path, () => {
    for (let done = 0; done < bytes.length; ) {
      done += writeSync(output.fd, bytes, done, bytes.length - done, offset + done);
    }
  });
}

/** Bytes as they come, from byte `start` of a file; zeros become a hole. The file must end at or before `start`. */
export class FileSink implements OutputSink {
  position = 0;

  constructor(
    private readonly output: Output,
    private readonly start: number,
  ) {}

  write(bytes: Uint8Array): void {
    writeAt(this.output, bytes, this.start + this.position);
    this.position += bytes.length;
  }

  writeFrom(address: number, length: number): void {
    writing(this.output.path, () =>
      writeFromMemory(this.output.fd, address, length, this.start + this.position),
    );
    this.position += length;
  }

  writeZeros(length: number): void {
    this.position += length;
  }

  get storedSize(): number {
    return this.position;
  }

  finish(): void {
    writing(this.output.path, () => ftruncateSync(this.output.fd, this.start + this.position));
  }

  close(): void {}
}
