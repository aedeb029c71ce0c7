/**
 * One image manifest: its layers are downloaded ahead, built bottom-up, and hashed and pushed while the next one is
 * built (convertor.md section 4).
 */
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { OverlaybdError } from "../error.ts";
import { appendTree } from "../format/verity/append.ts";
import { MAX_LOWERS } from "../image/config.ts";
import { type Descriptor, encodeManifest, MANIFEST_LIMIT, parseManifest } from "../registry/descriptor.ts";
import { digestOf } from "../registry/digest.ts";
import type { Repository } from "../registry/repository.ts";
import { chainIds, layerUuid } from "./chain.ts";
import {
  convertConfig,
  convertManifest,
  diffIds,
  layerDescriptor,
  type MediaFamily,
  mediaTypes,
} from "./documents.ts";
import type { Input } from "./input.ts";
import type { LayerJob } from "./layer.ts";
import { LayerInputs } from "./layer_inputs.ts";
import type { LayerThread } from "./layer_thread.ts";

export interface ConversionOptions {
  readonly family: MediaFamily;
  /** Size of the virtual disk in bytes. */
  readonly size: number;
  readonly compression: LayerJob["compression"];
  /** Add a Merkle tree to every layer (docs/verity.md). */
  readonly verity: boolean;
}

export type Progress = (event: ProgressEvent) => void;

/** A step of a conversion that is done: layer `number` of `count` of the image `image`. */
export interface ProgressEvent {
  readonly kind: "built" | "pushed";
  readonly image: Descriptor;
  readonly number: number;
  readonly count: number;
  /** Bytes of the source layer, and of what became of it. */
  readonly sourceSize: number;
  readonly size: number;
}

/** What all steps of converting one image need. */
export interface ConversionContext {
  /** Where images are read. */
  readonly source: Repository;
  /** Where they are pushed. */
  readonly target: Repository;
  /** Directory for temporary files. */
  readonly folder: string;
  readonly thread: LayerThread;
  readonly options: ConversionOptions;
  readonly progress: Progress;
}

/**
 * Converts the image `image` and pushes all of it but the new manifest, which is returned encoded.
 * @throws OverlaybdError
 */
export async function convertImage(context: ConversionContext, image: Descriptor): Promise<Uint8Array> {
  const { source, target, options } = context;
  const manifest = parseManifest(await source.manifest(image), `manifest ${image.digest} of ${source.name}`);
  if (manifest.layers.length > MAX_LOWERS) {
    const layers = `${manifest.layers.length} layers; ${MAX_LOWERS} is the limit`;
    throw new OverlaybdError("E_LIMIT", `manifest ${image.digest} of ${source.name} has ${layers}`);
  }
  const name = `config ${manifest.config.digest} of ${source.name}`;
  const config = await readDocument(source, manifest.config, name);
  const chain = chainIds(diffIds(config, manifest.layers.length, name));
  const folder = join(context.folder, image.digest.replace(":", "-"));
  await mkdir(folder, { recursive: true });
  try {
    const layers = await convertLayers({ ...context, folder }, image, manifest.layers, chain);
    const newConfig = convertConfig(
      config,
      layers.map(({ digest }) => digest),
      name,
    );
    const { config: mediaType } = mediaTypes(options.family);
    const descriptor = { mediaType, digest: digestOf(newConfig), size: newConfig.length };
    await target.pushBlob(descriptor, new Blob([newConfig]));
    return encodeManifest(convertManifest(manifest, options.family, descriptor, layers));
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function readDocument(
  repository: Repository,
  descriptor: Descriptor,
  name: string,
): Promise<Uint8Array> {
  if (descriptor.size > MANIFEST_LIMIT) {
    throw new OverlaybdError("E_LIMIT", `${name}: ${descriptor.size} bytes are more than ${MANIFEST_LIMIT}`);
  }
  return new Response(await repository.blob(descriptor)).bytes();
}

async function convertLayers(
  context: ConversionContext,
  image: Descriptor,
  sources: readonly Descriptor[],
  chain: readonly string[],
): Promise<Descriptor[]> {
  const { folder, thread, options, progress } = context;
  const inputs = new LayerInputs(context.source, sources, folder);
  const lowers: string[] = [];
  const pushes: Promise<Descriptor>[] = [];
  let pushFailed = false;
  try {
    for (const [i, source] of sources.entries()) {
      if (pushFailed) break;
      const output = join(folder, `${i}.overlaybd`);
      const input = await inputs.open(i);
      const size = await buildFrom(thread, input, {
        fd: input.fd,
        source: `layer ${i} (${source.digest})`,
        expected: input.verified ? undefined : source,
        lowers: [...lowers],
        output,
        size: options.size,
        uuid: layerUuid(chain[i]),
        parentUuid: i > 0 ? layerUuid(chain[i - 1]) : undefined,
        compression: options.compression,
      });
      lowers.push(output);
      const step = { image, number: i, count: sources.length, sourceSize: source.size, size };
      progress({ kind: "built", ...step });
      const push = pushLayer(context, output, size).then((descriptor) => {
        progress({ kind: "pushed", ...step });
        return descriptor;
      });
      push.catch(() => {
        pushFailed = true;
      });
      pushes.push(push);
    }
    return await Promise.all(pushes);
  } finally {
    await Promise.allSettled([...pushes, inputs.close()]);
  }
}

/** Builds a layer from `input`, and closes it. Of two failures the input's explains the other. */
async function buildFrom(thread: LayerThread, input: Input, job: LayerJob): Promise<number> {
  const build = thread.build(job);
  const [built] = await Promise.allSettled([build]);
  input.close();
  await input.complete.catch((error) => {
    const readerGone = error instanceof Error && "code" in error && error.code === "EPIPE";
    if (!readerGone || built.status === "fulfilled") throw error;
  });
  return build;
}

async function pushLayer(context: ConversionContext, path: string, size: number): Promise<Descriptor> {
  const { family, verity } = context.options;
  const sealed = verity ? await appendTree(path) : { digest: await hashLayer(path), size };
  const descriptor = layerDescriptor(family, sealed);
  await context.target.pushBlob(descriptor, Bun.file(path));
  return descriptor;
}

async function hashLayer(path: string): Promise<string> {
  const hash = new Bun.CryptoHasher("sha256");
  for await (const chunk of Bun.file(path).stream()) hash.update(chunk);
  return `sha256:${hash.digest("hex")}`;
}
