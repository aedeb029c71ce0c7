/** The push side of the embedded registry: uploads that span several requests. */
import { randomUUID } from "node:crypto";
import { OverlaybdError } from "../error.ts";
import { isDigest } from "./digest.ts";
import type { BlobWriter, ImageLayout } from "./layout.ts";
import { notAllowed, Refusal } from "./protocol.ts";

/** Uploads without a request for this long are dropped. */
const UPLOAD_IDLE_MS = 60 * 60 * 1000;
const MOST_UPLOADS = 1000;

interface Upload {
  readonly repository: string;
  readonly writer: BlobWriter;
  /** A request is writing to it. */
  busy: boolean;
  usedAt: number;
}

export class UploadSessions {
  readonly #uploads = new Map<string, Upload>();

  constructor(readonly layout: ImageLayout) {}

  /** Drops all uploads. */
  async close(): Promise<void> {
    await Promise.all([...this.#uploads.keys()].map((id) => this.#drop(id)));
  }

  /** Answers a request to `/v2/NAME/blobs/uploads/ID`; the id is empty to open an upload. */
  async answer(name: string, id: string, request: Request, url: URL): Promise<Response> {
    if (request.method === "POST" && id === "") return this.#open(name, request, url);
    const upload = this.#uploads.get(id);
    if (upload === undefined || upload.repository !== name) {
      throw new Refusal(404, "BLOB_UPLOAD_UNKNOWN", "no such upload; start a new one");
    }
    if (request.method === "GET") return progress(request, name, id, upload, 204);
    if (upload.busy)
      throw new Refusal(409, "BLOB_UPLOAD_INVALID", "another request is writing to this upload");
    upload.busy = true;
    try {
      switch (request.method) {
        case "PATCH":
          await this.#append(id, upload, request);
          return progress(request, name, id, upload, 202);
        case "PUT":
          return await this.#commit(name, id, upload, request, url);
        case "DELETE":
          await this.#drop(id);
          return new Response(null, { status: 204 });
        default:
          return notAllowed();
      }
    } finally {
      upload.busy = false;
      upload.usedAt = Date.now();
    }
  }

  async #open(name: string, request: Request, url: URL): Promise<Response> {
    const mount = url.searchParams.get("mount");
    if (mount !== null && isDigest(mount) && (await this.layout.blobSize(mount)) !== undefined) {
      return stored(name, mount);
    }
    await this.#dropIdle();
    if (this.#uploads.size >= MOST_UPLOADS)
      throw new Refusal(429, "TOOMANYREQUESTS", "too many uploads at once");
    const id = randomUUID();
    const upload: Upload = {
      repository: name,
      writer: await this.layout.createBlob(),
      busy: false,
      usedAt: Date.now(),
    };
    this.#uploads.set(id, upload);
    // With a digest the body of the POST is the whole blob.
    return url.searchParams.has("digest")
      ? this.#commit(name, id, upload, request, url)
      : progress(request, name, id, upload, 202);
  }

  async #commit(name: string, id: string, upload: Upload, request: Request, url: URL): Promise<Response> {
    const digest = url.searchParams.get("digest") ?? "";
    if (!isDigest(digest))
      throw new Refusal(400, "DIGEST_INVALID", "the digest parameter is missing or malformed");
    await this.#append(id, upload, request);
    // Whatever comes of it, the upload is over.
    this.#uploads.delete(id);
    try {
      await upload.writer.commit(digest);
    } catch (error) {
      if (!(error instanceof OverlaybdError) || error.code !== "E_CORRUPT") throw error;
      throw new Refusal(400, "DIGEST_INVALID", error.message);
    }
    return stored(name, digest);
  }

  /** What failed to be written cannot be continued, and would keep the disk full. */
  async #append(id: string, upload: Upload, request: Request): Promise<void> {
    try {
      await append(upload, request);
    } catch (error) {
      if (error instanceof OverlaybdError) await this.#drop(id);
      throw error;
    }
  }

  async #drop(id: string): Promise<void> {
    const upload = this.#uploads.get(id);
    this.#uploads.delete(id);
    await upload?.writer.abort();
  }

  async #dropIdle(): Promise<void> {
    const limit = Date.now() - UPLOAD_IDLE_MS;
    const idle = [...this.#uploads].filter(([, upload]) => !upload.busy && upload.usedAt < limit);
    await Promise.all(idle.map(([id]) => this.#drop(id)));
  }
}

function stored(name: string, digest: string): Response {
  const headers = { location: `/v2/${name}/blobs/${digest}`, "docker-content-digest": digest };
  return new Response(null, { status: 201, headers });
}

/** The location is a whole URL: upstream's uploader takes it as it is (image-config.md section 4.7). */
function progress(request: Request, name: string, id: string, { writer }: Upload, status: number): Response {
  const headers: Record<string, string> = {
    location: new URL(`/v2/${name}/blobs/uploads/${id}`, addressOf(request)).href,
    "docker-upload-uuid": id,
    range: `0-${Math.max(0, writer.offset - 1)}`,
  };
  return new Response(null, { status, headers });
}

/** The server as the client addressed it, perhaps through a proxy that ends TLS. */
function addressOf(request: Request): URL {
  const address = new URL(request.url);
  if (request.headers.get("x-forwarded-proto") === "https") address.protocol = "https:";
  return address;
}

/** Appends the body. Its Content-Range, if any, has to continue where the upload is. */
async function append(upload: Upload, request: Request): Promise<void> {
  const { writer } = upload;
  const range = request.headers.get("content-range");
  if (range !== null) {
    const match = /^(?:bytes )?(\d+)-(\d+)(?:\/.*)?$/.exec(range);
    if (match === null) throw new Refusal(400, "BLOB_UPLOAD_INVALID", "the Content-Range is malformed");
    const length = Number(match[2]) - Number(match[1]) + 1;
    const announced = request.headers.get("content-length");
    if (Number(match[1]) !== writer.offset || (announced !== null && Number(announced) !== length)) {
      const where = { range: `0-${Math.max(0, writer.offset - 1)}` };
      throw new Refusal(416, "BLOB_UPLOAD_INVALID", `the upload is at byte ${writer.offset}`, where);
    }
  }
  if (request.body !== null) for await (const chunk of request.body) await writer.write(chunk);
}
