/**
 * A repository inside an OCI image layout.
 *
 * A layout has one list of images, told apart by their annotation `org.opencontainers.image.ref.name`. Used by path
 * (`oci:DIR:TAG`), that name is the tag. Served as a registry, it is `repository:tag`; an image with a bare tag, as other
 * tools write them, is served under every repository. Blobs are shared by all repositories of the directory.
 */
import { OverlaybdError } from "../error.ts";
import {
  type Descriptor,
  type Index,
  isIndexType,
  isManifestType,
  MANIFEST_LIMIT,
  type Manifest,
  mediaTypeOf,
  parseIndex,
  parseManifest,
} from "./descriptor.ts";
import { digestOf, isDigest, Verifier, verifyDigest } from "./digest.ts";
import type { ImageLayout } from "./layout.ts";
import { referrerOf } from "./referrers.ts";
import { type BlobContent, type BlobUpload, openContent, type Repository } from "./repository.ts";
import { streamOf } from "./stream.ts";

export const REF_NAME = "org.opencontainers.image.ref.name";
/** Indexes within indexes deeper than this are not searched for referrers. */
const MOST_NESTING = 8;

export class LayoutRepository implements Repository {
  readonly name: string;

  /** @param repository name of the repository within a served layout; undefined: tags are whole names */
  constructor(
    readonly layout: ImageLayout,
    readonly repository?: string,
  ) {
    this.name = `oci:${layout.directory}${repository === undefined ? "" : `:${repository}`}`;
  }

  async resolveManifest(target?: string): Promise<{ descriptor: Descriptor; bytes: Uint8Array }> {
    const descriptor = await this.resolve(target);
    return { descriptor, bytes: await this.manifest(descriptor) };
  }

  async resolve(target?: string): Promise<Descriptor> {
    if (target !== undefined && isDigest(target)) return this.#resolveDigest(target);
    const entries = await this.layout.index();
    const found = target === undefined ? onlyImage(entries) : this.#findTag(entries, target);
    if (found === undefined) {
      const names = entries.flatMap((entry) => refName(entry) ?? []).slice(0, 20);
      const wanted =
        target === undefined ? "no image, or more than one" : `no image ${JSON.stringify(target)}`;
      throw new OverlaybdError(
        "E_NOT_FOUND",
        `${this.name} holds ${wanted}; it has: ${names.join(", ") || "none"}`,
      );
    }
    return { mediaType: found.mediaType, digest: found.digest, size: found.size };
  }

  async #resolveDigest(digest: string): Promise<Descriptor> {
    const bytes = await this.#readManifest(digest);
    return { mediaType: mediaTypeOf(bytes, `${this.name}@${digest}`), digest, size: bytes.length };
  }

  #findTag(entries: readonly Descriptor[], tag: string): Descriptor | undefined {
    const scoped = entries.find((entry) => refName(entry) === this.#refName(tag));
    return scoped ?? entries.find((entry) => refName(entry) === tag);
  }

  #refName(tag: string): string {
    return this.repository === undefined ? tag : `${this.repository}:${tag}`;
  }

  async manifest(descriptor: Descriptor): Promise<Uint8Array> {
    const bytes = await this.#readManifest(descriptor.digest);
    if (bytes.length === descriptor.size) return bytes;
    throw new OverlaybdError(
      "E_CORRUPT",
      `manifest ${descriptor.digest} of ${this.name}: has ${bytes.length} bytes, its descriptor says ${descriptor.size}`,
    );
  }

  async #readManifest(digest: string): Promise<Uint8Array> {
    const bytes = await this.layout.readManifest(digest);
    if (bytes === undefined)
      throw new OverlaybdError("E_NOT_FOUND", `${this.name} has no manifest ${digest}`);
    verifyDigest(bytes, digest, `manifest ${digest} of ${this.name}`);
    return bytes;
  }

  async blob(descriptor: Descriptor): Promise<ReadableStream<Uint8Array>> {
    await this.#sizeOf(descriptor.digest);
    return streamOf(this.#readBlob(descriptor));
  }

  async *#readBlob({ digest, size }: Descriptor): AsyncGenerator<Uint8Array, void> {
    const verifier = new Verifier(`blob ${digest} of ${this.name}`, digest, size);
    for await (const chunk of Bun.file(this.layout.blobPath(digest)).stream()) {
      verifier.update(chunk);
      yield chunk;
    }
    verifier.finish();
  }

  async *blobPieces(
    digest: string,
    offset: number,
    length: number,
    piece: number,
    size?: number,
  ): AsyncGenerator<Uint8Array, void> {
    const end = offset + length;
    for (let at = offset; at < end; at += piece) {
      yield await this.blobRange(digest, at, Math.min(piece, end - at), size);
    }
  }

  async blobRange(digest: string, offset: number, length: number, expected?: number): Promise<Uint8Array> {
    const size = await this.#sizeOf(digest);
    if (expected !== undefined && size !== expected) {
      throw new OverlaybdError(
        "E_CORRUPT",
        `blob ${digest} of ${this.name}: has ${size} bytes, not the ${expected} it should have`,
      );
    }
    if (!(offset >= 0 && length >= 0 && offset + length <= size)) {
      const range = `bytes ${offset}-${offset + length - 1}`;
      throw new OverlaybdError(
        "E_REGISTRY",
        `blob ${digest} of ${this.name}: ${range} are not within its ${size} bytes`,
      );
    }
    const bytes = await Bun.file(this.layout.blobPath(digest))
      .slice(offset, offset + length)
      .bytes();
    if (bytes.length === length) return bytes;
    throw new OverlaybdError("E_CORRUPT", `blob ${digest} of ${this.name} became shorter while it was read`);
  }

  async #sizeOf(digest: string): Promise<number> {
    const size = await this.layout.blobSize(digest);
    if (size === undefined) throw new OverlaybdError("E_NOT_FOUND", `${this.name} has no blob ${digest}`);
    return size;
  }

  async hasBlob(digest: string): Promise<boolean> {
    return (await this.layout.blobSize(digest)) !== undefined;
  }

  async pushBlob(descriptor: Pick<Descriptor, "digest" | "size">, content: BlobContent): Promise<void> {
    if (await this.hasBlob(descriptor.digest)) return;
    const writer = await this.layout.createBlob();
    try {
      for await (const chunk of await openContent(content, descriptor)) await writer.write(chunk);
    } catch (error) {
      await writer.abort();
      throw error;
    }
    await writer.commit(descriptor.digest);
  }

  openUpload(): Promise<BlobUpload> {
    return this.layout.createBlob();
  }

  mountBlob(digest: string): Promise<boolean> {
    return this.hasBlob(digest);
  }

  async pushManifest(tag: string | undefined, mediaType: string, bytes: Uint8Array): Promise<Descriptor> {
    const descriptor = { mediaType, digest: digestOf(bytes), size: bytes.length };
    await this.#check(descriptor, bytes);
    await this.pushBlob(descriptor, new Blob([Buffer.from(bytes)]));
    await this.layout.updateIndex((entries) =>
      tag === undefined
        ? withUntagged(entries, descriptor)
        : withTagged(entries, descriptor, this.#refName(tag)),
    );
    return descriptor;
  }

  /** A manifest must be what it is said to be, and all it refers to must be here (but not its subject). */
  async #check(descriptor: Descriptor, bytes: Uint8Array): Promise<void> {
    const name = `manifest ${descriptor.digest} for ${this.name}`;
    if (bytes.length > MANIFEST_LIMIT) {
      throw new OverlaybdError("E_LIMIT", `${name}: ${bytes.length} bytes are more than ${MANIFEST_LIMIT}`);
    }
    const own = mediaTypeOf(bytes, name);
    if (own !== descriptor.mediaType && !isCompatible(own, descriptor.mediaType)) {
      throw new OverlaybdError("E_CORRUPT", `${name}: is a ${own}, not a ${descriptor.mediaType}`);
    }
    for (const child of childrenOf(descriptor, bytes, name)) {
      // Layers with URLs need not be in the registry (image-spec, "non-distributable" layers).
      if (child.urls !== undefined || (await this.hasBlob(child.digest))) continue;
      throw new OverlaybdError("E_NOT_FOUND", `${name}: refers to ${child.digest}, which is not there`);
    }
  }

  /** The tags of this repository, in order; of a whole layout: the names of its images. */
  async tags(): Promise<string[]> {
    const prefix = `${this.repository}:`;
    const names = (await this.layout.index()).flatMap((entry) => refName(entry) ?? []);
    if (this.repository === undefined) return names.sort();
    const own = names.filter((name) => name.startsWith(prefix)).map((name) => name.slice(prefix.length));
    return [...new Set([...own, ...names.filter((name) => !name.includes(":"))])].sort();
  }

  async referrers(digest: string, artifactType?: string): Promise<Descriptor[]> {
    const found = new Map<string, Descriptor>();
    await this.#collectReferrers(await this.layout.index(), digest, found, 0);
    const all = [...found.values()];
    return artifactType === undefined
      ? all
      : all.filter((referrer) => referrer.artifactType === artifactType);
  }

  async #collectReferrers(
    entries: readonly Descriptor[],
    subject: string,
    found: Map<string, Descriptor>,
    depth: number,
  ): Promise<void> {
    for (const entry of entries) {
      const listed = isManifestType(entry.mediaType) || isIndexType(entry.mediaType);
      const bytes = listed ? await this.layout.readManifest(entry.digest) : undefined;
      if (bytes === undefined) continue;
      const name = `manifest ${entry.digest} of ${this.name}`;
      const link = referrerOf(entry, bytes, name);
      if (link?.subject.digest === subject) found.set(entry.digest, link.referrer);
      if (!isIndexType(entry.mediaType) || depth === MOST_NESTING) continue;
      await this.#collectReferrers(parseIndex(bytes, name).manifests, subject, found, depth + 1);
    }
  }
}

/** The name of an image in `index.json`. */
export function refName(entry: Descriptor): string | undefined {
  return entry.annotations?.[REF_NAME];
}

/** The image meant by no name: the only named one, else the only one. */
function onlyImage(entries: readonly Descriptor[]): Descriptor | undefined {
  const named = entries.filter((entry) => refName(entry) !== undefined);
  const candidates = named.length > 0 ? named : entries;
  return candidates.length === 1 ? candidates[0] : undefined;
}

function childrenOf(descriptor: Descriptor, bytes: Uint8Array, name: string): Descriptor[] {
  if (isIndexType(descriptor.mediaType)) return [...(parseIndex(bytes, name) satisfies Index).manifests];
  const manifest: Manifest = parseManifest(bytes, name);
  return [manifest.config, ...manifest.layers];
}

// Bytes without a mediaType of their own may be either family's.
function isCompatible(own: string, said: string): boolean {
  return (isManifestType(own) && isManifestType(said)) || (isIndexType(own) && isIndexType(said));
}

function withUntagged(entries: readonly Descriptor[], descriptor: Descriptor): Descriptor[] {
  const present = entries.some(({ digest }) => digest === descriptor.digest);
  return present ? [...entries] : [...entries, descriptor];
}

function withTagged(entries: readonly Descriptor[], descriptor: Descriptor, name: string): Descriptor[] {
  const others = entries.filter((entry) => {
    const replaced = refName(entry) === name;
    const nowNamed = entry.digest === descriptor.digest && refName(entry) === undefined;
    return !replaced && !nowNamed;
  });
  return [...others, { ...descriptor, annotations: { [REF_NAME]: name } }];
}
