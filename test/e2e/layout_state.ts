/** What a conversion, perhaps one that was ended, has left in the layout it wrote to. */
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { file } from "bun";
import { repositoryAccess } from "../../src/registry/access.ts";
import { type Descriptor, isIndexType, parseIndex, parseManifest } from "../../src/registry/descriptor.ts";
import type { Repository } from "../../src/registry/repository.ts";

export interface LayoutState {
  /** Digests of what is tagged. */
  readonly tags: Readonly<Record<string, string>>;
  /** Names of files that are being written, or were when their writer ended. */
  readonly unfinished: readonly string[];
}

/**
 * Reads the whole layout; nothing there is nothing tagged.
 * @throws Error when a blob has another digest than its name, or something tagged refers to what is not there.
 */
export async function verifyLayout(directory: string): Promise<LayoutState> {
  const blobs = join(directory, "blobs/sha256");
  for (const name of listed(blobs)) await verifyBlob(join(blobs, name), name);
  const unfinished = listed(join(directory, "ingest"));
  if (!existsSync(join(directory, "oci-layout"))) return { tags: {}, unfinished };

  const repository = await repositoryAccess()({ kind: "layout", directory });
  const tags: Record<string, string> = {};
  for (const tag of await repository.tags()) {
    const object = await repository.resolve(tag);
    await verifyObject(repository, blobs, object);
    tags[tag] = object.digest;
  }
  return { tags, unfinished };
}

/** @throws Error when the SHA-256 digest of the file is not `hex`. */
export async function verifyBlob(path: string, hex: string): Promise<void> {
  const hash = new Bun.CryptoHasher("sha256");
  for await (const chunk of file(path).stream()) hash.update(chunk);
  const actual = hash.digest("hex");
  if (actual !== hex) throw new Error(`${path} has digest ${actual}`);
}

async function verifyObject(repository: Repository, blobs: string, object: Descriptor): Promise<void> {
  await verifyPart(join(blobs, object.digest.slice(7)), object);
  const bytes = await repository.manifest(object);
  if (isIndexType(object.mediaType)) {
    for (const entry of parseIndex(bytes, object.digest).manifests)
      await verifyObject(repository, blobs, entry);
  } else {
    const { config, layers } = parseManifest(bytes, object.digest);
    for (const part of [config, ...layers]) await verifyPart(join(blobs, part.digest.slice(7)), part);
  }
}

async function verifyPart(path: string, { digest, size }: Descriptor): Promise<void> {
  if (!existsSync(path) || file(path).size !== size)
    throw new Error(`${digest} is not there as it should be`);
}

function listed(directory: string): string[] {
  return existsSync(directory) ? readdirSync(directory) : [];
}
