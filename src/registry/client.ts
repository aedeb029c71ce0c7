/** A repository of a remote registry (OCI distribution-spec 1.1; also Docker registries). */
import { OverlaybdError } from "../error.ts";
import {
  type Descriptor,
  isIndexType,
  isManifestType,
  MANIFEST_LIMIT,
  MediaType,
  mediaTypeOf,
} from "./descriptor.ts";
import { digestOf, isDigest, splitDigest, Verifier, verifyDigest } from "./digest.ts";
import type { Hedge } from "./hedge.ts";
import { type JsonObject, parseJsonObject } from "./json.ts";
import { checkContentRange, RangeReader, ranged } from "./range.ts";
import { fetchReferrers, recordReferrer } from "./referrers.ts";
import {
  type BlobContent,
  type BlobUpload,
  openContent,
  type RangeCheck,
  type Repository,
} from "./repository.ts";
import { DEFAULT_RETRY, isWorthRepeating, pauseAfter, type RetryPolicy, retry } from "./retry.ts";
import type { Exchange } from "./routes.ts";
import { streamOf } from "./stream.ts";
import { type HttpRequest, type HttpResponse, quote, type Transport } from "./transport.ts";
import { mountBlob, pushWhole, RemoteUpload } from "./upload.ts";

/** Accepts what this program can read, in the order it likes it. */
const ACCEPT = [
  MediaType.ociManifest,
  MediaType.ociIndex,
  MediaType.dockerManifest,
  MediaType.dockerIndex,
].join(", ");
/** A stream that broke and moved on by this many bytes has made progress: its attempts are counted anew. */
const PROGRESS_BYTES = 1024 * 1024;
const TAG_LIMIT = 100_000;

export interface RemoteOptions {
  /** Authorized, redirect-following transport of the host that takes uploads. */
  readonly transport: Transport;
  /** The same for all other requests, to whichever host serves them. */
  readonly exchange: Exchange;
  /** `https://host:port` */
  readonly origin: string;
  readonly host: string;
  readonly repository: string;
  /** Milliseconds for one small exchange, answer included. */
  readonly deadline: number;
  /** Milliseconds to wait for the answer to an upload. */
  readonly commit: number;
  readonly retry?: RetryPolicy;
  /** How often and long ranges of blobs are tried once the registry has answered; default: as everything else. */
  readonly reading?: RetryPolicy;
  /** What is known of the answers of the registry's host. */
  readonly hedge: Hedge;
  /** Push blobs in PATCH requests of this many bytes instead of one PUT. */
  readonly chunkBytes?: number;
}

export class RemoteRepository implements Repository {
  readonly name: string;
  readonly #policy: RetryPolicy;
  readonly #ranges = new RangeReader(this);

  constructor(readonly options: RemoteOptions) {
    this.name = `${options.host}/${options.repository}`;
    this.#policy = options.retry ?? DEFAULT_RETRY;
  }

  async resolve(target = "latest"): Promise<Descriptor> {
    const head = await this.exchange(
      { ...this.#manifestRequest(target), method: "HEAD" },
      async (response) => {
        response.discard();
        return response.status === 200 ? response : undefined;
      },
    );
    const size = Number(head?.header("content-length"));
    const digest = head?.header("docker-content-digest") ?? (isDigest(target) ? target : undefined);
    const mediaType = contentType(head);
    // Not every registry answers HEAD, or answers it in full.
    if (!(size > 0) || digest === undefined || !isDigest(digest) || !isKnown(mediaType))
      return (await this.resolveManifest(target)).descriptor;
    if (isDigest(target) && digest !== target) throw this.#wrongDigest(target, digest);
    return { mediaType, digest, size };
  }

  async resolveManifest(target = "latest"): Promise<{ descriptor: Descriptor; bytes: Uint8Array }> {
    const { bytes, type, said } = await this.#getManifest(target, MANIFEST_LIMIT);
    const digest = isDigest(target) ? target : isDigest(said) ? said : digestOf(bytes);
    verifyDigest(bytes, digest, `manifest ${target} of ${this.name}`);
    const mediaType = isKnown(type) ? type : mediaTypeOf(bytes, `${this.name}@${digest}`);
    return { descriptor: { mediaType, digest, size: bytes.length }, bytes };
  }

  async manifest(descriptor: Descriptor): Promise<Uint8Array> {
    const { digest, size } = descriptor;
    const name = `manifest ${digest} of ${this.name}`;
    if (size > MANIFEST_LIMIT)
      throw new OverlaybdError("E_LIMIT", `${name}: ${size} bytes are more than ${MANIFEST_LIMIT}`);
    const { bytes } = await this.#getManifest(digest, size);
    const verifier = new Verifier(name, digest, size);
    verifier.update(bytes);
    verifier.finish();
    return bytes;
  }

  /** `said` is the digest that the registry says it has. */
  #getManifest(target: string, limit: number): Promise<{ bytes: Uint8Array; type: string; said: string }> {
    return this.exchange(this.#manifestRequest(target), async (response) => {
      if (response.status !== 200) throw await response.unexpected();
      const said = response.header("docker-content-digest") ?? "";
      return { bytes: await response.bytes(limit), type: contentType(response), said };
    });
  }

  #manifestRequest(target: string): HttpRequest {
    return {
      method: "GET",
      url: this.url(`manifests/${target}`),
      headers: { accept: ACCEPT },
      subject: `manifest ${target}`,
      scopes: [this.scope("pull")],
      deadline: this.options.deadline,
    };
  }

  async blob(descriptor: Descriptor): Promise<ReadableStream<Uint8Array>> {
    // Opened before the stream is handed out, so that a missing blob is an error here.
    const first = await this.#openBlob(descriptor, 0);
    return streamOf(this.#readBlob(descriptor, first));
  }

  /** Reads on from where the connection broke, however often, as long as it moves on. */
  async *#readBlob(descriptor: Descriptor, first: HttpResponse): AsyncGenerator<Uint8Array, void> {
    const verifier = new Verifier(
      `blob ${descriptor.digest} of ${this.name}`,
      descriptor.digest,
      descriptor.size,
    );
    let response = first;
    let failures = 0;
    let failedAt = 0;
    while (true) {
      try {
        for await (const chunk of response.stream()) {
          verifier.update(chunk);
          yield chunk;
        }
        if (verifier.offset >= descriptor.size) break;
        throw response.error(
          "E_REGISTRY",
          `the answer ended after ${verifier.offset} of ${descriptor.size} bytes`,
          { transient: true },
        );
      } catch (error) {
        if (verifier.offset >= failedAt + PROGRESS_BYTES) failures = 0;
        failedAt = verifier.offset;
        failures++;
        if (!isWorthRepeating(error, this.#policy, failures)) throw error;
        await Bun.sleep(pauseAfter(error, this.#policy, failures));
        response = await this.#openBlob(descriptor, verifier.offset);
      }
    }
    verifier.finish();
  }

  #openBlob(descriptor: Descriptor, offset: number): Promise<HttpResponse> {
    const request = this.blobRequest(descriptor.digest);
    if (offset === 0) {
      return this.exchange(request, async (response) => {
        if (response.status !== 200) throw await response.unexpected();
        return response;
      });
    }
    const length = descriptor.size - offset;
    return this.exchange(ranged(request, offset, length), async (response) => {
      if (response.status !== 206) throw await response.unexpected();
      checkContentRange(response, offset, length);
      return response;
    });
  }

  blobRange(
    digest: string,
    offset: number,
    length: number,
    size?: number,
    check?: RangeCheck,
  ): Promise<Uint8Array> {
    return this.#ranges.read(digest, offset, length, size, check);
  }

  blobPieces(
    digest: string,
    offset: number,
    length: number,
    piece: number,
    size?: number,
  ): AsyncGenerator<Uint8Array, void> {
    return this.#ranges.pieces(digest, offset, length, piece, size);
  }

  hasBlob(digest: string): Promise<boolean> {
    const request = { ...this.blobRequest(digest), method: "HEAD", deadline: this.options.deadline };
    return this.exchange(request, async (response) => {
      if (response.status !== 200 && response.status !== 404) throw await response.unexpected();
      response.discard();
      return response.status === 200;
    });
  }

  async pushBlob(descriptor: Pick<Descriptor, "digest" | "size">, content: BlobContent): Promise<void> {
    if (await this.hasBlob(descriptor.digest)) return;
    if (this.options.chunkBytes === undefined) return pushWhole(this, descriptor, content);
    const upload = await this.openUpload();
    try {
      for await (const chunk of await openContent(content, descriptor)) await upload.write(chunk);
      await upload.commit(descriptor.digest);
    } catch (error) {
      await upload.abort();
      throw error;
    }
  }

  openUpload(): Promise<BlobUpload> {
    return RemoteUpload.open(this, this.options.chunkBytes);
  }

  mountBlob(digest: string, from: string): Promise<boolean> {
    return mountBlob(this, digest, from);
  }

  async pushManifest(tag: string | undefined, mediaType: string, bytes: Uint8Array): Promise<Descriptor> {
    const digest = digestOf(bytes);
    if (bytes.length > MANIFEST_LIMIT) {
      throw new OverlaybdError(
        "E_LIMIT",
        `manifest ${digest}: ${bytes.length} bytes are more than ${MANIFEST_LIMIT}`,
      );
    }
    const request: HttpRequest = {
      method: "PUT",
      url: this.url(`manifests/${tag ?? digest}`),
      headers: { "content-type": mediaType },
      body: async () => bytes,
      subject: `manifest ${tag ?? digest}`,
      scopes: [this.scope("pull,push")],
      deadline: this.options.deadline,
    };
    const understandsSubject = await this.exchange(request, async (response) => {
      if (response.status < 200 || response.status > 299) throw await response.unexpected();
      const stored = response.header("docker-content-digest") ?? digest;
      response.discard();
      if (stored !== digest) throw this.#wrongDigest(digest, stored);
      return response.header("oci-subject") !== undefined;
    });
    const descriptor = { mediaType, digest, size: bytes.length };
    if (!understandsSubject) await recordReferrer(this, descriptor, bytes);
    return descriptor;
  }

  async tags(): Promise<string[]> {
    const tags: string[] = [];
    for await (const page of this.pages(this.url("tags/list"), "tags")) {
      for (const tag of Array.isArray(page.tags) ? page.tags : [])
        if (typeof tag === "string") tags.push(tag);
      if (tags.length > TAG_LIMIT)
        throw new OverlaybdError("E_LIMIT", `${this.name}: more than ${TAG_LIMIT} tags`);
    }
    return tags;
  }

  referrers(digest: string, artifactType?: string): Promise<Descriptor[]> {
    return fetchReferrers(this, digest, artifactType);
  }

  // ---- for the parts of this client that live in other files

  url(path: string): URL {
    return new URL(`${this.options.origin}/v2/${this.options.repository}/${path}`);
  }

  /** The request for a whole blob. @throws OverlaybdError E_USAGE unless `digest` is one. */
  blobRequest(digest: string): HttpRequest {
    splitDigest(digest);
    const url = this.url(`blobs/${digest}`);
    return { method: "GET", url, subject: `blob ${digest}`, scopes: [this.scope("pull")] };
  }

  /** Token scope of this repository. */
  scope(actions: "pull" | "pull,push"): string {
    return `repository:${this.options.repository}:${actions}`;
  }

  /** Sends a request and lets `consume` make something of the answer; both are repeated when they fail transiently. */
  exchange<T>(request: HttpRequest, consume: (response: HttpResponse) => Promise<T>): Promise<T> {
    return retry(this.#policy, async (attempt) => this.options.exchange({ ...request, attempt }, consume));
  }

  get policy(): RetryPolicy {
    return this.#policy;
  }

  /** The JSON objects of a listing and of the pages its Link fields lead to; none when it does not exist. */
  async *pages(first: URL, subject: string): AsyncGenerator<JsonObject, void> {
    const seen = new Set<string>();
    for (let url: URL | undefined = first; url !== undefined && !seen.has(url.href); ) {
      seen.add(url.href);
      const request: HttpRequest = {
        method: "GET",
        url,
        subject,
        scopes: [this.scope("pull")],
        deadline: this.options.deadline,
      };
      const page: Page | undefined =
        (await this.exchange(request, async (response) => {
          if (response.status === 404) return response.discard();
          if (response.status !== 200) throw await response.unexpected();
          const body = parseJsonObject(await response.bytes(MANIFEST_LIMIT), `${subject} of ${this.name}`);
          return { body, next: nextLink(response) };
        })) ?? undefined;
      if (page === undefined) return;
      yield page.body;
      url = page.next;
    }
  }

  #wrongDigest(wanted: string, got: string): OverlaybdError {
    return new OverlaybdError(
      "E_CORRUPT",
      `${this.name}: manifest ${wanted}: the registry says it is ${quote(got)}`,
    );
  }
}

interface Page {
  readonly body: JsonObject;
  readonly next?: URL;
}

function isKnown(mediaType: string): boolean {
  return isManifestType(mediaType) || isIndexType(mediaType);
}

function contentType(response: HttpResponse | undefined): string {
  return response?.header("content-type")?.split(";")[0].trim() ?? "";
}

/** The next page (RFC 8288), only on the same origin. */
function nextLink(response: HttpResponse): URL | undefined {
  const target = /<([^>]*)>\s*;[^,]*\brel="?next\b/.exec(response.header("link") ?? "")?.[1];
  const url = target === undefined ? null : URL.parse(target, response.request.url.href);
  return url !== null && url.origin === response.request.url.origin ? url : undefined;
}
