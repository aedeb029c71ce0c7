/** The service config, `overlaybd.json`: what is the same for all images of a machine (image-config.md section 2). */
import type { Engine } from "../native/plan.ts";
import { Fields } from "./fields.ts";

export const DEFAULT_SERVICE_CONFIG = "/etc/overlaybd/overlaybd.json";

const DEFAULT_CACHE_DIRECTORY = "/opt/overlaybd/registry_cache";
const DEFAULT_CREDENTIAL_FILE = "/opt/overlaybd/cred.json";
/** Bytes fetched and tracked together. */
export const DEFAULT_REFILL_BYTES = 256 << 10;
/** Largest refill size; a disk that is full leaves room in memory for only a few units. */
const MAX_REFILL_BYTES = 4 << 20;
const GIB = 2 ** 30;
/** Longer than the restart of a registry or of a network takes. */
const DEFAULT_READ_DEADLINE = 300;

/** Absent strings are "", as in the file. */
export interface ServiceConfig {
  /** How local files are read: 0 psync, 1 libaio, 2 posix aio, and ours: 3 io_uring. */
  readonly engine: Engine;
  readonly cache: CacheConfig;
  readonly credentials: CredentialConfig;
  readonly certificate: CertificateConfig;
  readonly p2p: P2pConfig;
  /** Background download of images whose config does not say. */
  readonly download: DownloadConfig;
  /** Parallel workers that replay a trace. */
  readonly prefetchConcurrency: number;
  /** What requests name as their sender; "": this program and its version. */
  readonly userAgent: string;
  /** Ours: the HTTP proxy for registries, `http://[user:password@]host:port`; "": as the environment says. */
  readonly proxy: string;
  /** Ours: directory of containerd's registry hosts (`certs.d`); "": none. */
  readonly hostsDirectory: string;
  /** Ours: seconds for which a read of a disk is tried again when a registry fails; then it is an I/O error. */
  readonly readDeadline: number;
}

/** What is fetched is kept here (cache-download-prefetch.md). */
export interface CacheConfig {
  /** `ocf` is served as `file`. */
  readonly type: "file" | "ocf" | "download";
  readonly directory: string;
  /** Bytes. */
  readonly capacity: number;
  /** Bytes fetched and kept together. */
  readonly refillBytes: number;
}

/** Where user names and passwords come from (image-config.md section 3). */
export interface CredentialConfig {
  readonly mode: "file" | "http" | "https" | "uds";
  /** File (need not exist), URL or socket; "": be anonymous. */
  readonly path: string;
  /** Seconds. */
  readonly timeout: number;
  readonly clientCertificate: string;
  readonly clientKey: string;
  readonly serverAuthority: string;
}

/** The TLS client certificate for registries: PEM files, both or neither. */
export interface CertificateConfig {
  readonly certificate: string;
  readonly key: string;
}

/** A peer-to-peer accelerator: the URL of a blob is appended to `address`. */
export interface P2pConfig {
  readonly enable: boolean;
  readonly address: string;
}

/** Background download (image-config.md section 2.3). */
export interface DownloadConfig {
  readonly enable: boolean;
  /** Seconds, plus a random part below `delayExtra`. */
  readonly delay: number;
  readonly delayExtra: number;
  /** MiB per second and download; 0 or less: unlimited. */
  readonly maxMBps: number;
  readonly tryCnt: number;
  /** Bytes per read. */
  readonly blockSize: number;
}

/**
 * Reads a service config. Without a path the one at the default place, or the defaults when there is none.
 * @throws OverlaybdError E_CONFIG naming file and key.
 */
export async function loadServiceConfig(path?: string): Promise<ServiceConfig> {
  if (path !== undefined) return decode(await Fields.load(path));
  const absent = !(await Bun.file(DEFAULT_SERVICE_CONFIG).exists());
  return decode(
    absent ? Fields.parse("{}", DEFAULT_SERVICE_CONFIG) : await Fields.load(DEFAULT_SERVICE_CONFIG),
  );
}

function decode(fields: Fields): ServiceConfig {
  const p2p = fields.object("p2pConfig");
  return {
    engine: fields.integer("ioEngine", 0, 0, 3) as Engine,
    cache: decodeCache(fields),
    credentials: decodeCredentials(fields),
    certificate: decodeCertificate(fields.object("certConfig")),
    p2p: {
      enable: p2p.boolean("enable"),
      address: p2p.string("address", "http://localhost:9731/accelerator"),
    },
    download: decodeDownload(fields.object("download")),
    prefetchConcurrency: fields.object("prefetchConfig").integer("concurrency", 16, 1, 1024),
    userAgent: fields.string("userAgent"),
    proxy: fields.string("proxy"),
    hostsDirectory: fields.string("hostsDirectory"),
    readDeadline: fields.integer("readDeadline", DEFAULT_READ_DEADLINE, 1, 7 * 24 * 3600),
  };
}

function decodeCache(fields: Fields): CacheConfig {
  const cache = fields.object("cacheConfig");
  const refillBytes = cache.unsigned("refillSize", DEFAULT_REFILL_BYTES);
  if (refillBytes < 4096 || refillBytes > MAX_REFILL_BYTES || (refillBytes & (refillBytes - 1)) !== 0) {
    throw cache.wrong(
      "refillSize",
      `must be a power of two from 4096 to ${MAX_REFILL_BYTES}, not ${refillBytes}`,
    );
  }
  // The legacy keys count only where `cacheConfig` says nothing about the kind of cache.
  const legacy = cache.string("cacheType") === "";
  const [owner, typeKey] = legacy ? [fields, "cacheType"] : [cache, "cacheType"];
  const type = owner.string(typeKey, "file");
  if (type !== "file" && type !== "ocf" && type !== "download") {
    throw owner.wrong(typeKey, `must be file, download or ocf, not ${JSON.stringify(type)}`);
  }
  const directory = cache.string("cacheDir", DEFAULT_CACHE_DIRECTORY);
  const gibibytes = cache.unsigned("cacheSizeGB", 4);
  return {
    type,
    directory: legacy ? fields.string("registryCacheDir", directory) : directory,
    capacity: (legacy ? fields.unsigned("registryCacheSizeGB", gibibytes) : gibibytes) * GIB,
    refillBytes,
  };
}

function decodeCredentials(fields: Fields): CredentialConfig {
  const config = fields.object("credentialConfig");
  const mode = config.string("mode");
  const shared = {
    timeout: config.integer("timeout", 1, 1, 3600),
    clientCertificate: config.string("client_cert_path"),
    clientKey: config.string("client_key_path"),
    serverAuthority: config.string("server_ca_path"),
  };
  if (mode === "") {
    return { mode: "file", path: fields.string("credentialFilePath", DEFAULT_CREDENTIAL_FILE), ...shared };
  }
  if (mode !== "file" && mode !== "http" && mode !== "https" && mode !== "uds") {
    throw config.wrong("mode", `must be file, http, https or uds, not ${JSON.stringify(mode)}`);
  }
  return { mode, path: config.string("path"), ...shared };
}

function decodeCertificate(fields: Fields): CertificateConfig {
  const config = { certificate: fields.string("certFile"), key: fields.string("keyFile") };
  if ((config.certificate === "") !== (config.key === "")) {
    throw fields.wrong(config.key === "" ? "keyFile" : "certFile", "is missing: both are needed, or neither");
  }
  return config;
}

/** Decodes a `download` object, of the service config or of an image config. @throws OverlaybdError E_CONFIG */
export function decodeDownload(fields: Fields): DownloadConfig {
  return {
    enable: fields.boolean("enable"),
    delay: fields.integer("delay", 300),
    delayExtra: fields.integer("delayExtra", 30),
    maxMBps: fields.integer("maxMBps", 100),
    tryCnt: fields.integer("tryCnt", 5),
    blockSize: fields.unsigned("blockSize", 262144),
  };
}
