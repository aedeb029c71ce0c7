/** Connecting, and nothing else: the runtime's HTTP client knows no time limit for it. */
import { OverlaybdError } from "../error.ts";

/**
 * Connects to the host of a URL and hangs up.
 * @param timeout milliseconds
 * @throws OverlaybdError E_TIMEOUT, E_REGISTRY
 */
export async function dial(url: URL, timeout: number): Promise<void> {
  const port = Number(url.port) || (url.protocol === "https:" ? 443 : 80);
  const hostname = url.hostname.replace(/^\[(.*)\]$/, "$1");
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const timer = setTimeout(
    () =>
      reject(new OverlaybdError("E_TIMEOUT", `${url.host} does not accept connections within ${timeout} ms`)),
    timeout,
  );
  const failed = (_: unknown, error: NodeJS.ErrnoException) =>
    reject(
      new OverlaybdError("E_REGISTRY", `cannot connect to ${url.host} (${error.code ?? error.message})`),
    );
  // The socket is closed whenever it opens, also when nobody waits for it any more.
  const open = (socket: Bun.Socket) => {
    socket.end();
    resolve();
  };
  Bun.connect({ hostname, port, socket: { open, connectError: failed, error: failed, data() {} } }).catch(
    (error: NodeJS.ErrnoException) => failed(undefined, error),
  );
  try {
    await promise;
  } finally {
    clearTimeout(timer);
  }
}
