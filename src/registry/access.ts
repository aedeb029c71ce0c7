/** From a reference to the repository it names: how the rest of the program gets at images. */
import { OverlaybdError } from "../error.ts";
import { openAccelerator } from "./accelerator.ts";
import { RemoteRepository } from "./client.ts";
import { type Connection, connectRegistry } from "./connection.ts";
import { dockerCredentials } from "./credentials/docker.ts";
import type { CredentialSource } from "./credentials/source.ts";
import { Hedge } from "./hedge.ts";
import { findHosts, namespaceOf } from "./hosts/directory.ts";
import { ImageLayout } from "./layout.ts";
import { LayoutRepository } from "./layout-repository.ts";
import { chooseProxy } from "./proxy.ts";
import type { Reference } from "./reference.ts";
import type { Repository } from "./repository.ts";
import { persistently, type RetryPolicy } from "./retry.ts";
import type { TlsOptions } from "./tls.ts";
import { STALL_MS } from "./transport.ts";

export interface AccessOptions {
  /** Plain HTTP instead of TLS, for all hosts or for these. Never chosen by itself, not even for localhost. */
  readonly plain?: boolean | readonly string[];
  readonly tls?: TlsOptions;
  /** Directory of registry hosts (`certs.d`): mirrors, authorities, client certificates; "": none. */
  readonly hostsDirectory?: string;
  /** HTTP proxy for every request, `http://[user:password@]host[:port]`; default: as the environment says. */
  readonly proxy?: string;
  /** Address of a peer-to-peer accelerator for content of blobs. */
  readonly accelerator?: string;
  /** What requests name as their sender; default: this program and its version. */
  readonly userAgent?: string;
  /** Told what goes wrong without being an error, such as a mirror that fails; default: the console. */
  readonly warn?: (message: string) => void;
  /** Default: Docker's configuration. */
  readonly credentials?: CredentialSource;
  /** Push blobs in PATCH requests of this many bytes instead of one PUT. */
  readonly chunkBytes?: number;
  /** Milliseconds for one small exchange (manifest, range, check), answer included; default 60 s. */
  readonly deadline?: number;
  /** Milliseconds without a byte moving after which a connection is given up; default 30 s. */
  readonly stall?: number;
  /** Milliseconds a registry may take to store what was uploaded; default 5 minutes. */
  readonly commit?: number;
  readonly retry?: RetryPolicy;
  /**
   * Milliseconds for which ranges of blobs are tried again when a registry that has answered before fails; default: no
   * longer than anything else.
   */
  readonly readDeadline?: number;
}

/** Opens the repository of a reference. Without `create` the directory of an image layout has to exist. */
export type OpenRepository = (
  reference: Reference,
  mode?: { readonly create?: boolean },
) => Promise<Repository>;

/** What all repositories of a host share. */
interface Host extends Connection {
  readonly hedge: Hedge;
}

const DEFAULT_DEADLINE_MS = 60_000;
/** Registries copy or hash a whole blob before they answer. */
const DEFAULT_COMMIT_MS = 300_000;

/**
 * Sets up access with one set of options; connections, challenges and tokens are shared by all repositories of a host.
 * @throws (when a repository is opened) OverlaybdError E_CONFIG when a certificate file is unusable
 */
export function repositoryAccess(options: AccessOptions = {}): OpenRepository {
  const {
    plain = false,
    tls = {},
    hostsDirectory = "",
    deadline = DEFAULT_DEADLINE_MS,
    stall = STALL_MS,
    commit = DEFAULT_COMMIT_MS,
    warn = console.warn,
  } = options;
  const { chunkBytes, readDeadline, userAgent } = options;
  const proxy = chooseProxy(options.proxy);
  const credentials = options.credentials ?? dockerCredentials();
  const address = options.accelerator === undefined ? undefined : parseAddress(options.accelerator);
  const accelerator = address && openAccelerator(address, { stall, userAgent });
  const hosts = new Map<string, Promise<Host>>();

  async function connect(origin: string, host: string): Promise<Host> {
    const root = new URL(`${origin}/v2`);
    const configured = await findHosts(hostsDirectory, host, root);
    const connection = await connectRegistry(configured, root, namespaceOf(host), {
      tls,
      proxy,
      stall,
      userAgent,
      credentials,
      warn,
      accelerator: await accelerator,
    });
    return { ...connection, hedge: new Hedge() };
  }

  return async (reference, { create = false } = {}) => {
    if (reference.kind === "layout") {
      return new LayoutRepository(await ImageLayout.open(reference.directory, { create }));
    }
    const { host, repository } = reference;
    // The URL's spelling of the origin: default ports left out, host in lower case.
    const scheme = plain === true || (plain !== false && plain.includes(host)) ? "http" : "https";
    const { origin } = new URL(`${scheme}://${host}`);
    let connected = hosts.get(host);
    if (connected === undefined) {
      connected = connect(origin, host);
      hosts.set(host, connected);
    }
    return new RemoteRepository({
      ...(await connected),
      origin,
      host,
      repository,
      deadline,
      commit,
      chunkBytes,
      retry: options.retry,
      reading: readDeadline === undefined ? undefined : persistently(readDeadline),
    });
  };
}

function parseAddress(text: string): URL {
  const url = URL.parse(text);
  if (url?.protocol === "http:" || url?.protocol === "https:") return url;
  throw new OverlaybdError("E_CONFIG", "the address of the P2P accelerator is not an HTTP URL");
}
