/**
 * The documents of a converted image: config, manifest, index (convertor.md section 7). Values of the source that
 * conversion does not touch are kept, also fields that no specification knows.
 */
import { OverlaybdError } from "../error.ts";
import { formatVerity, VERITY_ANNOTATION, type Verity } from "../format/verity/descriptor.ts";
import type { Annotations, Descriptor, Manifest } from "../registry/descriptor.ts";
import { MediaType } from "../registry/descriptor.ts";
import { isDigest } from "../registry/digest.ts";
import { encodeJson, isObject, type JsonObject, type JsonValue, parseJsonObject } from "../registry/json.ts";

/** Which spelling of media types the result uses. */
export type MediaFamily = "docker" | "oci";

const TYPES = {
  docker: {
    manifest: MediaType.dockerManifest,
    config: MediaType.dockerConfig,
    layer: MediaType.dockerLayer,
  },
  oci: { manifest: MediaType.ociManifest, config: MediaType.ociConfig, layer: MediaType.ociLayer },
} as const;

export function mediaTypes(family: MediaFamily): (typeof TYPES)[MediaFamily] {
  return TYPES[family];
}

/** Value of the version annotation: layers of this format version. */
const LAYER_VERSION = "0.1.0";
export const LAYER_ANNOTATIONS = "containerd.io/snapshot/overlaybd";

/** A converted layer: digest and size in bytes of the blob, and the Merkle tree in it, if there is one. */
export interface ConvertedLayer {
  readonly digest: string;
  readonly size: number;
  readonly verity?: Verity;
}

/** Descriptor of a converted layer: an uncompressed tar, therefore diff id = digest. */
export function layerDescriptor(family: MediaFamily, { digest, size, verity }: ConvertedLayer): Descriptor {
  const annotations: Annotations = {
    [`${LAYER_ANNOTATIONS}/blob-digest`]: digest,
    [`${LAYER_ANNOTATIONS}/blob-size`]: String(size),
    [`${LAYER_ANNOTATIONS}/version`]: LAYER_VERSION,
    ...(verity && { [VERITY_ANNOTATION]: formatVerity(verity) }),
  };
  return { mediaType: TYPES[family].layer, digest, size, annotations };
}

/**
 * The diff ids of an image config.
 * @throws OverlaybdError E_CORRUPT when they are malformed or not one for each of `layers` layers
 */
export function diffIds(config: Uint8Array, layers: number, name: string): string[] {
  const { rootfs } = parseJsonObject(config, name);
  const ids = isObject(rootfs) && Array.isArray(rootfs.diff_ids) ? (rootfs.diff_ids as unknown[]) : [];
  if (!ids.every((id) => typeof id === "string" && isDigest(id))) {
    throw new OverlaybdError("E_CORRUPT", `${name}: rootfs.diff_ids holds something that is not a digest`);
  }
  if (ids.length !== layers) {
    throw new OverlaybdError(
      "E_CORRUPT",
      `${name}: ${ids.length} diff ids for the manifest's ${layers} layers`,
    );
  }
  return ids as string[];
}

/** Field order of Go's image-spec structs; fields they do not have follow in the order of the source. */
const IMAGE = ["created", "author", "architecture", "os", "os.version", "os.features", "variant"];
const RUN = "User ExposedPorts Env Entrypoint Cmd Volumes WorkingDir Labels StopSignal ArgsEscaped".split(
  " ",
);
const HISTORY = ["created", "created_by", "author", "comment", "empty_layer"];

/** The source's config with other diff ids. */
export function convertConfig(source: Uint8Array, newDiffIds: readonly string[], name: string): Uint8Array {
  const image = parseJsonObject(source, name);
  const run = isObject(image.config) ? image.config : {};
  const history = Array.isArray(image.history) ? image.history.filter(isObject) : [];
  return encodeJson({
    ...known(image, IMAGE),
    config: { ...known(run, RUN), ...others(run, RUN) },
    rootfs: { type: "layers", diff_ids: newDiffIds },
    history:
      history.length === 0
        ? undefined
        : history.map((step) => ({ ...known(step, HISTORY), ...others(step, HISTORY) })),
    ...others(image, [...IMAGE, "config", "rootfs", "history"]),
  });
}

/** `fields` of `object`, in that order and without the empty ones but the two that Go always writes. */
function known(object: JsonObject, fields: readonly string[]): Record<string, JsonValue> {
  const result: Record<string, JsonValue> = {};
  for (const field of fields) {
    const value = object[field];
    if (field === "architecture" || field === "os") result[field] = typeof value === "string" ? value : "";
    else if (!isEmpty(value)) result[field] = isObject(value) ? goMap(value) : (value as JsonValue);
  }
  return result;
}

function others(object: JsonObject, fields: readonly string[]): Record<string, JsonValue> {
  const entries = Object.entries(object).filter(([key]) => !fields.includes(key));
  return Object.fromEntries(entries) as Record<string, JsonValue>;
}

function goMap(object: JsonObject): JsonValue {
  return new Map(Object.entries(object) as [string, JsonValue][]);
}

function isEmpty(value: unknown): boolean {
  if (value === undefined || value === null || value === "" || value === false) return true;
  return typeof value === "object" && Object.keys(value).length === 0;
}

/** The source's manifest with another config and other layers. */
export function convertManifest(
  source: Manifest,
  family: MediaFamily,
  config: Descriptor,
  layers: readonly Descriptor[],
): Manifest {
  return { ...source, mediaType: TYPES[family].manifest, config, layers };
}

/** An entry of an index that describes an attestation of another entry, not an image. */
export function isAttestation(entry: Descriptor): boolean {
  return entry.annotations?.["vnd.docker.reference.type"] === "attestation-manifest";
}
