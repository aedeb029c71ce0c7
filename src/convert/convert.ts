/** Converts what a tag names: one image, or an index of images for several platforms (convertor.md section 3). */
import { availableParallelism } from "node:os";
import { OverlaybdError } from "../error.ts";
import {
  type Descriptor,
  encodeIndex,
  isIndexType,
  isManifestType,
  MediaType,
  parseIndex,
} from "../registry/descriptor.ts";
import type { Repository } from "../registry/repository.ts";
import { isAttestation, type MediaFamily, mediaTypes } from "./documents.ts";
import { type ConversionContext, convertImage, type Progress } from "./image.ts";
import { LayerThread } from "./layer_thread.ts";
import { WorkFolder } from "./work_folder.ts";

export interface ConvertOptions {
  readonly source: Repository;
  /** Tag or digest of the source; absent: the only image of a layout. */
  readonly input?: string;
  /** May be the same repository. */
  readonly target: Repository;
  readonly outputTag: string;
  /** Media types of the result. */
  readonly family: MediaFamily;
  /** Size of the virtual disk in bytes. */
  readonly size: number;
  /** Add a Merkle tree to every layer (docs/verity.md); default false. */
  readonly verity?: boolean;
  /** Where temporary files go; a directory of its own is made in it, and those of killed conversions are removed. */
  readonly workFolder: string;
  readonly progress?: Progress;
  /** Told of index entries that are left out. */
  readonly warn?: (message: string) => void;
  /** Ends the conversion with its reason. What was begun may go on a little, into files that are removed already. */
  readonly signal?: AbortSignal;
}

/** LZ4 in 4 KiB blocks, as upstream's convertor writes. */
const COMPRESSION = { codec: 1, blockSize: 4096, threads: availableParallelism() } as const;

/** Indexes within indexes deeper than this are refused. */
const MOST_NESTING = 8;

/**
 * Converts and pushes under `outputTag`; returns the descriptor of the result. Nothing is tagged unless all of it is
 * pushed. The same input gives the same digests.
 * @throws OverlaybdError
 */
export async function convert(options: ConvertOptions): Promise<Descriptor> {
  const root = await options.source.resolve(options.input);
  const folder = await WorkFolder.create(options.workFolder);
  const thread = new LayerThread();
  const context: ConversionContext & Pick<ConvertOptions, "warn"> = {
    source: options.source,
    target: options.target,
    folder: folder.path,
    thread,
    options: {
      family: options.family,
      size: options.size,
      compression: COMPRESSION,
      verity: options.verity ?? false,
    },
    progress: options.progress ?? (() => {}),
    warn: options.warn,
  };
  try {
    const { mediaType, bytes } = await untilAborted(convertObject(context, root, 0), options.signal);
    return await untilAborted(
      options.target.pushManifest(options.outputTag, mediaType, bytes),
      options.signal,
    );
  } finally {
    await thread.close();
    await folder.remove();
  }
}

/** The result of `work`, or a rejection as soon as the signal is aborted. */
async function untilAborted<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return work;
  const aborted = Promise.withResolvers<never>();
  const abort = () => aborted.reject(signal.reason);
  signal.addEventListener("abort", abort);
  try {
    if (signal.aborted) abort();
    return await Promise.race([work, aborted.promise]);
  } finally {
    signal.removeEventListener("abort", abort);
  }
}

interface Encoded {
  readonly mediaType: string;
  readonly bytes: Uint8Array;
}

type Context = ConversionContext & Pick<ConvertOptions, "warn">;

async function convertObject(context: Context, object: Descriptor, depth: number): Promise<Encoded> {
  const { family } = context.options;
  if (isManifestType(object.mediaType)) {
    return { mediaType: mediaTypes(family).manifest, bytes: await convertImage(context, object) };
  }
  if (isIndexType(object.mediaType)) return convertIndex(context, object, depth);
  throw new OverlaybdError("E_UNSUPPORTED", `${object.digest}: unsupported media type "${object.mediaType}"`);
}

/** One image after the other: each of them keeps all cores busy. */
async function convertIndex(context: Context, object: Descriptor, depth: number): Promise<Encoded> {
  if (depth === MOST_NESTING) {
    throw new OverlaybdError("E_LIMIT", `index ${object.digest} lies within ${MOST_NESTING} others`);
  }
  const { source, target, options } = context;
  const index = parseIndex(await source.manifest(object), `index ${object.digest} of ${source.name}`);
  const manifests: Descriptor[] = [];
  for (const entry of index.manifests) {
    if (isAttestation(entry)) {
      context.warn?.(`attestation manifest ${entry.digest} is left out: it describes the unconverted image`);
      continue;
    }
    const { mediaType, bytes } = await convertObject(context, entry, depth + 1);
    const { digest, size } = await target.pushManifest(undefined, mediaType, bytes);
    manifests.push({ ...entry, mediaType, digest, size, data: undefined });
  }
  const mediaType = options.family === "oci" ? MediaType.ociIndex : (index.mediaType ?? object.mediaType);
  return { mediaType, bytes: encodeIndex({ ...index, mediaType, manifests }) };
}
