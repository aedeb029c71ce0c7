/** One repository of images, wherever it is: in a remote registry or in an OCI layout directory. */
import { OverlaybdError } from "../error.ts";
import type { Descriptor } from "./descriptor.ts";

export interface Repository {
  /** What to call it in messages: `host/path` or `oci:directory`. */
  readonly name: string;

  // ---- pull

  /**
   * The descriptor (media type, digest, size) of the manifest or index behind a tag or digest. Without a target: the
   * only image of a layout.
   * @throws OverlaybdError E_NOT_FOUND
   */
  resolve(target?: string): Promise<Descriptor>;

  /**
   * The bytes of a manifest or index, at most `MANIFEST_LIMIT`, verified against the digest.
   * @throws OverlaybdError E_NOT_FOUND, E_CORRUPT, E_LIMIT
   */
  manifest(descriptor: Descriptor): Promise<Uint8Array>;

  /** What `resolve` finds, and its bytes as `manifest` gives them, without asking twice. @throws as both. */
  resolveManifest(target?: string): Promise<{ readonly descriptor: Descriptor; readonly bytes: Uint8Array }>;

  /**
   * All of a blob, in order. Size and digest are verified: the stream fails with E_CORRUPT at its end (before it ends
   * regularly) when they do not match, so nothing may be trusted until the end is reached.
   * @throws OverlaybdError E_NOT_FOUND
   */
  blob(descriptor: Descriptor): Promise<ReadableStream<Uint8Array>>;

  /**
   * Exactly `length` bytes of a blob from `offset` on. They cannot be verified against the digest.
   * @param size what the blob's size should be, in bytes, if known
   * @param check throws when the bytes that a host sent are wrong; if other hosts may have the blob, they are asked then
   * @throws OverlaybdError E_REGISTRY when the range is not within the blob; E_CORRUPT when its size is another one; what
   * `check` throws
   */
  blobRange(
    digest: string,
    offset: number,
    length: number,
    size?: number,
    check?: RangeCheck,
  ): Promise<Uint8Array>;

  /**
   * The same as it arrives: pieces of `piece` bytes, the last one may be shorter. Each is valid until the next one is asked for.
   * @throws OverlaybdError as `blobRange`; the pieces before are right then.
   */
  blobPieces(
    digest: string,
    offset: number,
    length: number,
    piece: number,
    size?: number,
  ): AsyncGenerator<Uint8Array, void>;

  hasBlob(digest: string): Promise<boolean>;

  // ---- push

  /** Stores a blob unless it is there. Its content must have the descriptor's size and digest. */
  pushBlob(descriptor: Pick<Descriptor, "digest" | "size">, content: BlobContent): Promise<void>;

  /** Begins storing a blob whose digest is not known yet. */
  openUpload(): Promise<BlobUpload>;

  /** Makes a blob of repository `from` of the same registry available here, without a transfer; false: it cannot be. */
  mountBlob(digest: string, from: string): Promise<boolean>;

  /**
   * Stores a manifest or index under a tag, or under its digest alone when `tag` is undefined. All that it refers to
   * has to be there already.
   */
  pushManifest(tag: string | undefined, mediaType: string, bytes: Uint8Array): Promise<Descriptor>;

  // ---- discovery

  tags(): Promise<string[]>;

  /** Descriptors of the manifests whose subject is `digest`, of one artifact type or of all. */
  referrers(digest: string, artifactType?: string): Promise<Descriptor[]>;
}

/** Throws when the bytes of a range are wrong. */
export type RangeCheck = (bytes: Uint8Array) => Promise<void>;

/**
 * Content to push: a `Blob` (a file: `Bun.file(path)`), or a function that opens a stream. It is opened again when a
 * transfer has to be repeated, therefore a bare stream will not do.
 */
export type BlobContent = Blob | (() => Promise<ReadableStream<Uint8Array>>);

/**
 * Opens content for a transfer. The stream fails with E_CORRUPT when it has not the descriptor's size, because a
 * registry that was promised more would wait for it.
 */
export async function openContent(
  content: BlobContent,
  { digest, size }: Pick<Descriptor, "digest" | "size">,
): Promise<ReadableStream<Uint8Array>> {
  let length = 0;
  const check = (complete: boolean) => {
    if (length > size || (complete && length < size)) {
      const what = `blob ${digest}: the content to push has not the ${size} bytes of its descriptor`;
      throw new OverlaybdError("E_CORRUPT", what);
    }
  };
  const stream = content instanceof Blob ? content.stream() : await content();
  return stream.pipeThrough(
    new TransformStream({
      transform(chunk, controller) {
        length += chunk.byteLength;
        check(false);
        controller.enqueue(chunk);
      },
      flush: () => check(true),
    }),
  );
}

/** A blob being stored piece by piece. Calls must not overlap. */
export interface BlobUpload {
  /** Appends `bytes`, which may be reused after the returned promise resolves. */
  write(bytes: Uint8Array): Promise<void>;
  /**
   * Completes the blob, which then exists in the repository.
   * @throws OverlaybdError E_CORRUPT when what was written has another digest
   */
  commit(digest: string): Promise<void>;
  /** Gives up; nothing of it is left. */
  abort(): Promise<void>;
}
