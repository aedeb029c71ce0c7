/** Ends a mount from outside its server, whether that lives or not. */
import { connect } from "node:net";
import { OverlaybdError } from "../../error.ts";
import { SystemError } from "../../native/errno.ts";
import { UnmountFlag, unmount } from "../../native/mount.ts";
import { isMounted, MountRecord, type MountState } from "./record.ts";
import type { MountStats } from "./server.ts";

/**
 * Unmounts what overlaybd has mounted at `directory` and returns once its server is gone, with what the server says
 * about its life; null when it had died, and this only cleaned up.
 * @throws OverlaybdError E_NOT_FOUND, E_BUSY while something uses the mount.
 */
export async function unmountImage(directory: string, runDirectory: string): Promise<MountStats | null> {
  const record = MountRecord.find(runDirectory, directory);
  const state = record?.state();
  if (!record || !state) {
    throw new OverlaybdError("E_NOT_FOUND", `overlaybd has nothing mounted at ${directory}`);
  }
  if (!record.served()) {
    await takeAway(state, true);
    record.remove();
    return null;
  }
  const server = await connectTo(record.socket);
  try {
    await takeAway(state, false);
    const text = await server.said;
    return text === "" ? null : (JSON.parse(text) as MountStats);
  } finally {
    server.close();
  }
}

async function takeAway(state: MountState, dead: boolean): Promise<void> {
  if (!isMounted(state)) return;
  try {
    await unmount(state.directory, UnmountFlag.NOFOLLOW);
  } catch (cause) {
    if (!(cause instanceof SystemError) || cause.code !== "EBUSY") throw cause;
    if (!dead) {
      const message = `${state.directory} is in use; end what uses it first (fuser -vm ${state.directory} shows it)`;
      throw new OverlaybdError("E_BUSY", message, { cause });
    }
    // Whoever uses it gets errors only: nothing to wait for.
    await unmount(state.directory, UnmountFlag.NOFOLLOW | UnmountFlag.DETACH);
  }
}

/** What a server says on its socket; the end of that is the end of its process. */
async function connectTo(path: string): Promise<{ said: Promise<string>; close(): void }> {
  const { promise: connected, resolve, reject } = Promise.withResolvers<void>();
  const socket = connect(path, resolve).once("error", reject);
  const pieces: Buffer[] = [];
  const said = new Promise<string>((end) => {
    socket.on("data", (piece: Buffer) => pieces.push(piece));
    socket.on("close", () => end(Buffer.concat(pieces).toString()));
  });
  await connected;
  return { said, close: () => socket.destroy() };
}
