/**
 * The embedded registry: OCI distribution-spec 1.1 over an OCI image layout, for demos, tests and air-gapped sites. All
 * repositories of a directory share its blobs; there is no access control, so it listens on loopback unless told not to.
 */
import { OverlaybdError } from "../error.ts";
import {
  encodeIndex,
  isIndexType,
  isManifestType,
  MANIFEST_LIMIT,
  MediaType,
  parseIndex,
  parseManifest,
} from "./descriptor.ts";
import { isDigest } from "./digest.ts";
import { ImageLayout } from "./layout.ts";
import { LayoutRepository, refName } from "./layout-repository.ts";
import { notAllowed, paginate, parseRange, parseRoute, Refusal, readBody } from "./protocol.ts";
import { isRepositoryName } from "./reference.ts";
import { UploadSessions } from "./upload-sessions.ts";

export interface ServeOptions {
  /** Directory of the image layout; created when it does not exist. */
  readonly directory: string;
  /** Default 127.0.0.1. */
  readonly hostname?: string;
  /** Default 0: any free port. */
  readonly port?: number;
  /** Paths of the PEM files to serve TLS with. */
  readonly tls?: { readonly certificate: string; readonly key: string };
  /** Refuse every push. */
  readonly readOnly?: boolean;
}

export interface RegistryServer {
  /** `http://host:port` */
  readonly url: string;
  readonly stats: Readonly<RegistryStats>;
  /** Stops at once, also transfers under way; unfinished uploads are dropped. */
  stop(): Promise<void>;
}

export interface RegistryStats {
  /** Requests answered. */
  requests: number;
  /** Requests for a blob or a part of one (GET). */
  blobRequests: number;
  /** Bytes of blobs in the answers to those, counted when an answer begins. */
  blobBytes: number;
}

/** Seconds without traffic after which a connection is closed (the most that Bun.serve takes). */
const IDLE_SECONDS = 255;

/** Starts the registry. @throws OverlaybdError E_CONFIG, E_IO or what opening the layout throws */
export async function serveRegistry(options: ServeOptions): Promise<RegistryServer> {
  const layout = await ImageLayout.open(options.directory, { create: options.readOnly !== true });
  const registry = new Registry(layout, options.readOnly === true);
  const { hostname = "127.0.0.1", port = 0, tls } = options;
  let server: Bun.Server<undefined>;
  try {
    server = Bun.serve({
      hostname,
      port,
      idleTimeout: IDLE_SECONDS,
      // Blobs have no limit but the disk; manifests have theirs.
      maxRequestBodySize: Number.MAX_SAFE_INTEGER,
      tls: tls && { cert: Bun.file(tls.certificate), key: Bun.file(tls.key) },
      fetch: (request) => registry.answer(request),
    });
  } catch (error) {
    throw new OverlaybdError("E_IO", `cannot listen on ${hostname}:${port}: ${(error as Error).message}`, {
      cause: error,
    });
  }
  return {
    url: server.url.origin,
    stats: registry.stats,
    async stop() {
      await server.stop(true);
      await registry.uploads.close();
    },
  };
}

class Registry {
  readonly stats: RegistryStats = { requests: 0, blobRequests: 0, blobBytes: 0 };

  readonly uploads: UploadSessions;

  constructor(
    readonly layout: ImageLayout,
    readonly readOnly: boolean,
  ) {
    this.uploads = new UploadSessions(layout);
  }

  async answer(request: Request): Promise<Response> {
    this.stats.requests++;
    try {
      return await this.#dispatch(request, new URL(request.url));
    } catch (error) {
      return refusalOf(error).toResponse();
    }
  }

  async #dispatch(request: Request, url: URL): Promise<Response> {
    const { method } = request;
    const reading = method === "GET" || method === "HEAD";
    if (url.pathname === "/v2/" || url.pathname === "/v2") return reading ? version() : notAllowed();
    if (url.pathname === "/v2/_catalog") return reading ? this.#catalog(url) : notAllowed();
    const { name, kind, argument } = parseRoute(url.pathname);
    if (!reading && this.readOnly) throw new Refusal(405, "UNSUPPORTED", "this registry is read-only");
    const repository = new LayoutRepository(this.layout, name);
    switch (kind) {
      case "manifests":
        if (method === "PUT") return this.#putManifest(repository, argument, request);
        return reading ? this.#getManifest(repository, argument) : notAllowed();
      case "blobs":
        return reading ? this.#getBlob(argument, request) : notAllowed();
      case "uploads":
        return this.uploads.answer(name, argument, request, url);
      case "tags":
        return reading ? this.#tags(repository, url) : notAllowed();
      default:
        return reading ? this.#referrers(repository, argument, url) : notAllowed();
    }
  }

  // ---- pull

  async #getManifest(repository: LayoutRepository, target: string): Promise<Response> {
    const descriptor = await repository.resolve(target);
    const bytes = await repository.manifest(descriptor);
    return new Response(Buffer.from(bytes), {
      headers: {
        "content-type": descriptor.mediaType,
        "docker-content-digest": descriptor.digest,
        etag: `"${descriptor.digest}"`,
      },
    });
  }

  async #getBlob(digest: string, request: Request): Promise<Response> {
    const size = await this.layout.blobSize(digest);
    if (size === undefined) throw new Refusal(404, "BLOB_UNKNOWN", `no blob ${digest}`);
    const headers: Record<string, string> = {
      "content-type": "application/octet-stream",
      "docker-content-digest": digest,
      "accept-ranges": "bytes",
      etag: `"${digest}"`,
    };
    const file = Bun.file(this.layout.blobPath(digest));
    if (request.method === "HEAD") {
      return new Response(null, { headers: { ...headers, "content-length": String(size) } });
    }
    const range = parseRange(request.headers.get("range"), size);
    const { first, end } = range ?? { first: 0, end: size };
    this.stats.blobRequests++;
    this.stats.blobBytes += end - first;
    if (range !== undefined) headers["content-range"] = `bytes ${first}-${end - 1}/${size}`;
    return new Response(file.slice(first, end), { status: range === undefined ? 200 : 206, headers });
  }

  async #tags(repository: LayoutRepository, url: URL): Promise<Response> {
    const tags = await repository.tags();
    if (tags.length === 0) throw new Refusal(404, "NAME_UNKNOWN", `no repository ${repository.repository}`);
    const { page, headers } = paginate(tags, url);
    return Response.json({ name: repository.repository, tags: page }, { headers });
  }

  async #catalog(url: URL): Promise<Response> {
    const names = (await this.layout.index()).flatMap((entry) => {
      const name = refName(entry) ?? "";
      const repository = name.slice(0, Math.max(0, name.lastIndexOf(":")));
      return isRepositoryName(repository) ? repository : [];
    });
    const { page, headers } = paginate([...new Set(names)].sort(), url);
    return Response.json({ repositories: page }, { headers });
  }

  async #referrers(repository: LayoutRepository, digest: string, url: URL): Promise<Response> {
    const artifactType = url.searchParams.get("artifactType") ?? undefined;
    const manifests = await repository.referrers(digest, artifactType);
    const headers: Record<string, string> = { "content-type": MediaType.ociIndex };
    if (artifactType !== undefined) headers["oci-filters-applied"] = "artifactType";
    return new Response(Buffer.from(encodeIndex({ mediaType: MediaType.ociIndex, manifests })), { headers });
  }

  // ---- push

  async #putManifest(repository: LayoutRepository, target: string, request: Request): Promise<Response> {
    const bytes = await readBody(request, MANIFEST_LIMIT);
    const mediaType = request.headers.get("content-type")?.split(";")[0].trim() ?? "";
    if (!isManifestType(mediaType) && !isIndexType(mediaType)) {
      throw new Refusal(
        400,
        "MANIFEST_INVALID",
        "the Content-Type is not that of an image manifest or index",
      );
    }
    const tag = isDigest(target) ? undefined : target;
    const digest = `sha256:${new Bun.CryptoHasher("sha256").update(bytes).digest("hex")}`;
    if (tag === undefined && target !== digest) {
      throw new Refusal(400, "DIGEST_INVALID", `the manifest has digest ${digest}`);
    }
    try {
      await repository.pushManifest(tag, mediaType, bytes);
    } catch (error) {
      throw refusalOfManifest(error);
    }
    const document = isIndexType(mediaType) ? parseIndex(bytes, digest) : parseManifest(bytes, digest);
    const headers: Record<string, string> = {
      location: `/v2/${repository.repository}/manifests/${target}`,
      "docker-content-digest": digest,
    };
    if (document.subject !== undefined) headers["oci-subject"] = document.subject.digest;
    return new Response(null, { status: 201, headers });
  }
}

function version(): Response {
  return Response.json({}, { headers: { "docker-distribution-api-version": "registry/2.0" } });
}

function refusalOf(error: unknown): Refusal {
  if (error instanceof Refusal) return error;
  if (error instanceof OverlaybdError && error.code === "E_NOT_FOUND") {
    return new Refusal(404, "MANIFEST_UNKNOWN", "no such manifest");
  }
  // The client closed its connection; nobody reads this answer.
  if (error instanceof DOMException && error.name === "AbortError") {
    return new Refusal(400, "BLOB_UPLOAD_INVALID", "the request ended early");
  }
  // Messages of the system name paths of this machine, so they stay here.
  if (error instanceof OverlaybdError && isDiskFull(error.cause)) {
    console.error(error.message);
    return new Refusal(507, "UNKNOWN", "the registry's disk is full");
  }
  console.error(error);
  return new Refusal(500, "UNKNOWN", "the registry failed; see its log");
}

function isDiskFull(cause: unknown): boolean {
  return cause instanceof Error && "code" in cause && (cause.code === "ENOSPC" || cause.code === "EDQUOT");
}

function refusalOfManifest(error: unknown): unknown {
  if (!(error instanceof OverlaybdError)) return error;
  if (error.code === "E_NOT_FOUND")
    return new Refusal(404, "MANIFEST_BLOB_UNKNOWN", "it refers to what is not here");
  const invalid = error.code === "E_CORRUPT" || error.code === "E_UNSUPPORTED";
  return invalid ? new Refusal(400, "MANIFEST_INVALID", "it is malformed") : error;
}
