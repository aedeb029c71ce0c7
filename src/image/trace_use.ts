/** What becomes of a trace while an image is served: it is recorded, or what it names is fetched ahead. */
import { open, stat } from "node:fs/promises";
import { join } from "node:path";
import { OverlaybdError } from "../error.ts";
import { unwrapTar } from "../format/tar/wrapper.ts";
import { MAX_TRACE_BYTES } from "../format/trace.ts";
import type { Descriptor } from "../registry/descriptor.ts";
import type { Repository } from "../registry/repository.ts";
import type { ImageConfig } from "./config.ts";

/** The tar adds headers and padding. */
const MAX_LAYER_BYTES = MAX_TRACE_BYTES + (1 << 20);

export type TraceUse =
  | { readonly kind: "record"; readonly path: string }
  /** `content` is a trace, or a list of files. */
  | { readonly kind: "prefetch"; readonly name: string; readonly content: Promise<Uint8Array> };

/**
 * What an image config says (cache-download-prefetch.md section 6.1): the file at `recordTracePath` is recorded to when it
 * is empty, else used; that in the acceleration layer is used.
 * @throws OverlaybdError E_CONFIG when both are given, E_IO when the file cannot be looked at.
 */
export async function configuredTrace(config: ImageConfig): Promise<TraceUse | undefined> {
  const { name, accelerationLayer, recordTracePath: path } = config;
  if (accelerationLayer && path !== "") {
    throw new OverlaybdError(
      "E_CONFIG",
      `${name}: recordTracePath cannot be used together with an acceleration layer`,
    );
  }
  const dir = accelerationLayer ? (config.lowers.at(-1)?.dir ?? "") : "";
  const file = dir === "" ? path : join(dir, "trace");
  if (file === "") return undefined;
  const size = await sizeOf(file);
  if (size === undefined) return undefined;
  if (size > 0) return prefetchFrom(file);
  return accelerationLayer ? undefined : { kind: "record", path: file };
}

/** Uses a trace or list of files. */
export function prefetchFrom(path: string): TraceUse {
  const content = readBounded(path);
  // Whoever waits for it hears of its failure.
  content.catch(() => {});
  return { kind: "prefetch", name: path, content };
}

/** Uses what the first file in the tar of an acceleration layer holds (ctr.md section 5.1). */
export function prefetchFromLayer(repository: Repository, layer: Descriptor): TraceUse {
  const content = readMember(repository, layer);
  content.catch(() => {});
  return { kind: "prefetch", name: `${repository.name}@${layer.digest}`, content };
}

async function readMember(repository: Repository, layer: Descriptor): Promise<Uint8Array> {
  const name = `acceleration layer ${layer.digest} of ${repository.name}`;
  if (layer.size > MAX_LAYER_BYTES) {
    throw new OverlaybdError(
      "E_LIMIT",
      `${name} has ${layer.size} bytes; at most ${MAX_LAYER_BYTES} are read`,
    );
  }
  const bytes = await new Response(await repository.blob(layer)).bytes();
  const { start, size } = await unwrapTar({
    name,
    size: bytes.length,
    read: async (offset, length) => bytes.subarray(offset, offset + length),
  });
  return bytes.subarray(start, start + size);
}

/**
 * Records to a new or empty file.
 * @throws OverlaybdError E_EXISTS when something is in it; E_IO.
 */
export async function recordTo(path: string): Promise<TraceUse> {
  try {
    await (await open(path, "a", 0o644)).close();
  } catch (cause) {
    throw new OverlaybdError("E_IO", `cannot record to ${path}: ${(cause as Error).message}`, { cause });
  }
  if (await sizeOf(path)) {
    throw new OverlaybdError("E_EXISTS", `${path} is not empty; remove it to record to it`);
  }
  return { kind: "record", path };
}

/** Bytes of a file; undefined when there is none. */
async function sizeOf(path: string): Promise<number | undefined> {
  try {
    return (await stat(path)).size;
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") return undefined;
    throw new OverlaybdError("E_IO", `cannot look at ${path}: ${message}`, { cause });
  }
}

async function readBounded(path: string): Promise<Uint8Array> {
  const size = (await sizeOf(path)) ?? 0;
  if (size <= MAX_TRACE_BYTES) return Bun.file(path).bytes();
  throw new OverlaybdError(
    "E_LIMIT",
    `${path} has ${size} bytes; traces of at most ${MAX_TRACE_BYTES} are read`,
  );
}
