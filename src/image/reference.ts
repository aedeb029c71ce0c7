/** Opening an overlaybd image where it lies, without an image config: in a registry or in an OCI layout directory. */
import type { Blob } from "../blob/blob.ts";
import { openFileBlob } from "../blob/file.ts";
import { OverlaybdError } from "../error.ts";
import { parseVerity, VERITY_ANNOTATION } from "../format/verity/descriptor.ts";
import { repositoryAccess } from "../registry/access.ts";
import {
  type Descriptor,
  isIndexType,
  isManifestType,
  type Manifest,
  parseIndex,
  parseManifest,
} from "../registry/descriptor.ts";
import { LayoutRepository } from "../registry/layout-repository.ts";
import { parseReference } from "../registry/reference.ts";
import type { Repository } from "../registry/repository.ts";
import { MAX_LOWERS } from "./config.ts";
import { type BlobOpener, type ImageOptions, type OpenImage, openStack } from "./open.ts";
import { blobOrigin } from "./remote.ts";
import { prefetchFromLayer, type TraceUse } from "./trace_use.ts";

/** Marks a layer descriptor as an overlaybd layer (convertor.md section 7.3). */
const BLOB_DIGEST = "containerd.io/snapshot/overlaybd/blob-digest";
/** Marks it as a TurboOCI layer on top of that. */
const TURBO_TARGET = "containerd.io/snapshot/overlaybd/turbo-oci/target-digest";
/** The value "yes" marks the topmost layer as one that holds a trace instead of data (ctr.md section 5.1). */
const ACCELERATION = "containerd.io/snapshot/overlaybd/acceleration-layer";
/** Indexes within indexes deeper than this are not followed. */
const MAX_NESTING = 4;

/**
 * Opens an overlaybd image by reference (see `parseReference`), of an index the image for this machine.
 * @throws OverlaybdError E_USAGE; E_NOT_FOUND; E_UNSUPPORTED when it is no overlaybd image; and what opening layers throws.
 */
export async function openReference(reference: string, options: ImageOptions): Promise<OpenImage> {
  const { openers, trace } = await resolve(reference, options);
  return openStack(openers, options.trace ?? trace, options);
}

/** The layers of an overlaybd image, bottom first, not opened yet, and its acceleration layer if it has one. */
async function resolve(
  text: string,
  options: ImageOptions,
): Promise<{ openers: readonly BlobOpener[]; trace?: TraceUse }> {
  const reference = parseReference(text);
  const repository = await repositoryAccess(options.access)(reference);
  const manifest = await readManifest(repository, reference.digest ?? reference.tag);
  const top = manifest.layers.at(-1);
  const accelerated = top?.annotations?.[ACCELERATION] === "yes";
  const layers = accelerated ? manifest.layers.slice(0, -1) : manifest.layers;
  checkLayers(text, layers);
  const openers = layers.map((layer): BlobOpener => {
    // What lies in a local directory needs no cache.
    if (repository instanceof LayoutRepository) return () => openLayoutBlob(repository, layer);
    const { digest, size, annotations } = layer;
    return async () =>
      options.cache.open(digest, blobOrigin(repository, digest, size, annotations?.[VERITY_ANNOTATION]));
  });
  return { openers, trace: accelerated ? prefetchFromLayer(repository, top) : undefined };
}

async function openLayoutBlob(
  { layout, name }: LayoutRepository,
  { digest, size, annotations }: Descriptor,
): Promise<Blob> {
  const text = annotations?.[VERITY_ANNOTATION];
  const verity = text === undefined ? undefined : parseVerity(text, size, `blob ${digest} of ${name}`);
  const blob = await openFileBlob(layout.blobPath(digest), verity);
  if (blob.size === size) return blob;
  await blob.close();
  const sizes = `has ${blob.size} bytes, its descriptor says ${size}`;
  throw new OverlaybdError("E_CORRUPT", `blob ${digest} of ${name} ${sizes}`);
}

async function readManifest(repository: Repository, target: string | undefined): Promise<Manifest> {
  let { descriptor, bytes } = await repository.resolveManifest(target);
  for (let depth = 0; ; depth++) {
    const name = `${repository.name}@${descriptor.digest}`;
    if (isManifestType(descriptor.mediaType)) return parseManifest(bytes, name);
    if (!isIndexType(descriptor.mediaType) || depth === MAX_NESTING) {
      throw new OverlaybdError(
        "E_UNSUPPORTED",
        `${name} is not an image, its media type is ${descriptor.mediaType}`,
      );
    }
    descriptor = choosePlatform(parseIndex(bytes, name).manifests, name);
    bytes = await repository.manifest(descriptor);
  }
}

/** The entry for this machine; the only one when the index does not say what its entries are for. */
function choosePlatform(manifests: readonly Descriptor[], name: string): Descriptor {
  const architecture = process.arch === "x64" ? "amd64" : process.arch;
  const fits = manifests.find(
    ({ platform }) => platform?.os === "linux" && platform.architecture === architecture,
  );
  const only = manifests.length === 1 && !manifests[0].platform ? manifests[0] : undefined;
  const chosen = fits ?? only;
  if (chosen) return chosen;
  const offered = manifests.map(({ platform }) =>
    platform ? `${platform.os}/${platform.architecture}` : "any",
  );
  throw new OverlaybdError(
    "E_NOT_FOUND",
    `${name} has no image for linux/${architecture}, only for: ${offered.join(", ") || "nothing"}`,
  );
}

function checkLayers(reference: string, layers: readonly Descriptor[]): void {
  if (layers.length > MAX_LOWERS) {
    throw new OverlaybdError(
      "E_LIMIT",
      `${reference} has ${layers.length} layers; ${MAX_LOWERS} is the limit`,
    );
  }
  for (const { digest, annotations = {} } of layers) {
    if (annotations[TURBO_TARGET] !== undefined) {
      throw new OverlaybdError(
        "E_UNSUPPORTED",
        `${reference}: layer ${digest} is a TurboOCI layer, which cannot be opened yet`,
      );
    }
    if (annotations[BLOB_DIGEST] !== digest) {
      throw new OverlaybdError(
        "E_UNSUPPORTED",
        `${reference} is not an overlaybd image (layer ${digest} is not marked as one); make one of it with "overlaybd convert"`,
      );
    }
  }
  if (layers.length === 0) throw new OverlaybdError("E_UNSUPPORTED", `${reference} has no layers`);
}
