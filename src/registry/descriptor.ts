/**
 * The documents of an image: descriptors, manifests, indexes (OCI image-spec 1.1; Docker image manifest v2 schema 2).
 * Parsing validates, because the bytes come from strangers; encoding gives the field order other tools give.
 */
import { OverlaybdError } from "../error.ts";
import { isDigest } from "./digest.ts";
import { encodeJson, isObject, type JsonObject, type JsonValue, parseJsonObject } from "./json.ts";

export const MediaType = {
  ociManifest: "application/vnd.oci.image.manifest.v1+json",
  ociIndex: "application/vnd.oci.image.index.v1+json",
  ociConfig: "application/vnd.oci.image.config.v1+json",
  ociLayer: "application/vnd.oci.image.layer.v1.tar",
  ociLayerGzip: "application/vnd.oci.image.layer.v1.tar+gzip",
  ociLayerZstd: "application/vnd.oci.image.layer.v1.tar+zstd",
  dockerManifest: "application/vnd.docker.distribution.manifest.v2+json",
  dockerIndex: "application/vnd.docker.distribution.manifest.list.v2+json",
  dockerConfig: "application/vnd.docker.container.image.v1+json",
  dockerLayer: "application/vnd.docker.image.rootfs.diff.tar",
  dockerLayerGzip: "application/vnd.docker.image.rootfs.diff.tar.gzip",
} as const;

/** Largest manifest or index that is read or written, in bytes (the limit the distribution spec asks for). */
export const MANIFEST_LIMIT = 4 * 1024 * 1024;

export interface Descriptor {
  readonly mediaType: string;
  readonly digest: string;
  /** Size of the content in bytes. */
  readonly size: number;
  readonly urls?: readonly string[];
  readonly annotations?: Annotations;
  /** Base64 of the content itself. */
  readonly data?: string;
  readonly platform?: Platform;
  readonly artifactType?: string;
}

export type Annotations = Readonly<Record<string, string>>;

export interface Platform {
  readonly architecture: string;
  readonly os: string;
  readonly "os.version"?: string;
  readonly "os.features"?: readonly string[];
  readonly variant?: string;
}

/** An image manifest, of either family; `mediaType` is absent in some OCI manifests of other tools. */
export interface Manifest {
  readonly mediaType?: string;
  readonly artifactType?: string;
  readonly config: Descriptor;
  readonly layers: readonly Descriptor[];
  readonly subject?: Descriptor;
  readonly annotations?: Annotations;
}

/** An OCI index or a Docker manifest list. */
export interface Index {
  readonly mediaType?: string;
  readonly artifactType?: string;
  readonly manifests: readonly Descriptor[];
  readonly subject?: Descriptor;
  readonly annotations?: Annotations;
}

export function isManifestType(mediaType: string): boolean {
  return mediaType === MediaType.ociManifest || mediaType === MediaType.dockerManifest;
}

export function isIndexType(mediaType: string): boolean {
  return mediaType === MediaType.ociIndex || mediaType === MediaType.dockerIndex;
}

/**
 * The media type of a manifest's or index's bytes: their own `mediaType`, else what their fields make them.
 * @throws OverlaybdError E_CORRUPT or E_UNSUPPORTED
 */
export function mediaTypeOf(bytes: Uint8Array, name: string): string {
  const object = parseJsonObject(bytes, name);
  if (object.mediaType !== undefined) return string(object.mediaType, `${name}: mediaType`);
  if (Array.isArray(object.manifests)) return MediaType.ociIndex;
  if (Array.isArray(object.layers)) return MediaType.ociManifest;
  throw new OverlaybdError("E_UNSUPPORTED", `${name}: is neither an image manifest nor an index`);
}

/** Parses and validates an image manifest. @throws OverlaybdError E_CORRUPT naming `name` and the field. */
export function parseManifest(bytes: Uint8Array, name: string): Manifest {
  const object = versioned(bytes, name);
  return {
    ...common(object, name),
    config: parseDescriptor(object.config, `${name}: config`),
    layers: list(object.layers, `${name}: layers`, parseDescriptor),
  };
}

/** Parses and validates an index or manifest list. @throws OverlaybdError E_CORRUPT naming `name` and the field. */
export function parseIndex(bytes: Uint8Array, name: string): Index {
  const object = versioned(bytes, name);
  return {
    ...common(object, name),
    manifests: list(object.manifests, `${name}: manifests`, parseDescriptor),
  };
}

/** Encodes a manifest: `schemaVersion, mediaType, artifactType?, config, layers, subject?, annotations?`. */
export function encodeManifest(manifest: Manifest): Uint8Array {
  return encodeJson({
    schemaVersion: 2,
    mediaType: manifest.mediaType,
    artifactType: manifest.artifactType,
    config: descriptorFields(manifest.config),
    layers: manifest.layers.map(descriptorFields),
    subject: manifest.subject && descriptorFields(manifest.subject),
    annotations: annotationFields(manifest.annotations),
  });
}

/** Encodes an index: `schemaVersion, mediaType?, artifactType?, manifests, subject?, annotations?`. */
export function encodeIndex(index: Index): Uint8Array {
  return encodeJson({
    schemaVersion: 2,
    mediaType: index.mediaType,
    artifactType: index.artifactType,
    manifests: index.manifests.map(descriptorFields),
    subject: index.subject && descriptorFields(index.subject),
    annotations: annotationFields(index.annotations),
  });
}

function descriptorFields(descriptor: Descriptor): JsonValue {
  const platform = descriptor.platform;
  return {
    mediaType: descriptor.mediaType,
    digest: descriptor.digest,
    size: descriptor.size,
    urls: descriptor.urls,
    annotations: annotationFields(descriptor.annotations),
    data: descriptor.data,
    platform: platform && {
      architecture: platform.architecture,
      os: platform.os,
      "os.version": platform["os.version"],
      "os.features": platform["os.features"],
      variant: platform.variant,
    },
    artifactType: descriptor.artifactType,
  };
}

// A Go map: empty ones are omitted, keys are sorted.
function annotationFields(annotations: Annotations | undefined): JsonValue {
  const entries = Object.entries(annotations ?? {});
  return entries.length === 0 ? undefined : new Map(entries);
}

/** Validates one descriptor. @throws OverlaybdError E_CORRUPT naming `name` and the field. */
export function parseDescriptor(value: unknown, name: string): Descriptor {
  if (!isObject(value)) throw corrupt(name, "is not a descriptor object");
  const { size } = value;
  if (typeof size !== "number" || !Number.isSafeInteger(size) || size < 0)
    throw corrupt(`${name}.size`, "is no size");
  const digest = string(value.digest, `${name}.digest`);
  if (!isDigest(digest)) throw corrupt(`${name}.digest`, "is not a sha256 or sha512 digest");
  return defined({
    mediaType: string(value.mediaType, `${name}.mediaType`),
    digest,
    size,
    urls: optional(value.urls, (urls) => list(urls, `${name}.urls`, string)),
    annotations: optional(value.annotations, (map) => parseAnnotations(map, `${name}.annotations`)),
    data: optional(value.data, (data) => string(data, `${name}.data`)),
    platform: optional(value.platform, (platform) => parsePlatform(platform, `${name}.platform`)),
    artifactType: optional(value.artifactType, (type) => string(type, `${name}.artifactType`)),
  });
}

function parsePlatform(value: unknown, name: string): Platform {
  if (!isObject(value)) throw corrupt(name, "is not an object");
  return defined({
    architecture: string(value.architecture, `${name}.architecture`),
    os: string(value.os, `${name}.os`),
    "os.version": optional(value["os.version"], (version) => string(version, `${name}.os.version`)),
    "os.features": optional(value["os.features"], (features) =>
      list(features, `${name}.os.features`, string),
    ),
    variant: optional(value.variant, (variant) => string(variant, `${name}.variant`)),
  });
}

function parseAnnotations(value: unknown, name: string): Annotations {
  if (!isObject(value)) throw corrupt(name, "is not an object");
  return Object.fromEntries(
    Object.entries(value).map(([key, text]) => [key, string(text, `${name}[${key}]`)]),
  );
}

function versioned(bytes: Uint8Array, name: string): JsonObject {
  const object = parseJsonObject(bytes, name);
  if (object.schemaVersion === 1) {
    throw new OverlaybdError(
      "E_UNSUPPORTED",
      `${name}: Docker schema 1 manifests are not supported; push it again`,
    );
  }
  if (object.schemaVersion !== 2) throw corrupt(`${name}: schemaVersion`, "is not 2");
  return object;
}

function common(object: JsonObject, name: string) {
  return defined({
    mediaType: optional(object.mediaType, (type) => string(type, `${name}: mediaType`)),
    artifactType: optional(object.artifactType, (type) => string(type, `${name}: artifactType`)),
    subject: optional(object.subject, (subject) => parseDescriptor(subject, `${name}: subject`)),
    annotations: optional(object.annotations, (map) => parseAnnotations(map, `${name}: annotations`)),
  });
}

function string(value: unknown, name: string): string {
  if (typeof value !== "string") throw corrupt(name, "is not a string");
  return value;
}

function list<T>(value: unknown, name: string, parse: (item: unknown, name: string) => T): T[] {
  if (!Array.isArray(value)) throw corrupt(name, "is not a list");
  return value.map((item, position) => parse(item, `${name}[${position}]`));
}

// Go writes empty lists and maps of optional fields as null now and then; both mean absent.
function optional<T>(value: unknown, parse: (value: unknown) => T): T | undefined {
  return value === undefined || value === null ? undefined : parse(value);
}

/** Drops undefined fields, so that parsed documents compare equal to written ones. */
function defined<T extends object>(object: T): T {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined)) as T;
}

function corrupt(name: string, what: string): OverlaybdError {
  return new OverlaybdError("E_CORRUPT", `${name} ${what}`);
}
