/** From a reference to the repository it names: how the rest of the program gets at images. */
import { authorize } from "./authorization.ts";
import { RemoteRepository } from "./client.ts";
import { dockerCredentials } from "./credentials/docker.ts";
import type { CredentialSource } from "./credentials/source.ts";
import { Health } from "./health.ts";
import { Hedge } from "./hedge.ts";
import { ImageLayout } from "./layout.ts";
import { LayoutRepository } from "./layout-repository.ts";
import { chooseProxy } from "./proxy.ts";
import { followRedirects } from "./redirect.ts";
import type { Reference } from "./reference.ts";
import type { Repository } from "./repository.ts";
import { persistently, type RetryPolicy } from "./retry.ts";
import { type Exchange, fallBack } from "./routes.ts";
import { fetchTransport, STALL_MS, type TlsOptions, type Transport } from "./transport.ts";

export interface AccessOptions {
  /** Plain HTTP instead of TLS. Never chosen by itself, not even for localhost. */
  readonly plain?: boolean;
  readonly tls?: TlsOptions;
  /** HTTP proxy for every request, `http://[user:password@]host[:port]`; default: as the environment says. */
  readonly proxy?: string;
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
interface Host {
  readonly transport: Transport;
  readonly exchange: Exchange;
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
    deadline = DEFAULT_DEADLINE_MS,
    stall = STALL_MS,
    commit = DEFAULT_COMMIT_MS,
    chunkBytes,
  } = options;
  const credentials = options.credentials ?? dockerCredentials();
  const proxy = chooseProxy(options.proxy);
  const { readDeadline } = options;
  const hosts = new Map<string, Promise<Host>>();

  async function connect(origin: string, host: string): Promise<Host> {
    const transport = await fetchTransport({ tls: options.tls, stall, proxy });
    const send = followRedirects(authorize(transport, origin, host, credentials));
    const route = { name: host, health: new Health(), serves: () => true, send };
    return { transport: send, exchange: fallBack([route], () => {}), hedge: new Hedge() };
  }

  return async (reference, { create = false } = {}) => {
    if (reference.kind === "layout") {
      return new LayoutRepository(await ImageLayout.open(reference.directory, { create }));
    }
    const { host, repository } = reference;
    // The URL's spelling of the origin: default ports left out, host in lower case.
    const { origin } = new URL(`${plain ? "http" : "https"}://${host}`);
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
