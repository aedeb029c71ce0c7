/**
 * Files that processes lock to keep out of each other's way (flock(2)). A lock ends with the process that has it, however
 * that ends; so what a killed process has left can be told from what a living one is still working on.
 */
import { randomUUID } from "node:crypto";
import { constants } from "node:fs";
import { type FileHandle, open, readdir } from "node:fs/promises";
import { join } from "node:path";
import { tryLock } from "./descriptor.ts";

const RETRY_MS = 2;

/** Opens `path` and waits for its lock, which closing the file releases; null when somebody else keeps it too long. */
export async function lockFile(path: string, timeoutMs: number): Promise<FileHandle | null> {
  const file = await open(path, constants.O_RDWR | constants.O_CREAT, 0o644);
  try {
    for (const deadline = performance.now() + timeoutMs; performance.now() < deadline; ) {
      if (tryLock(file.fd)) return file;
      await Bun.sleep(RETRY_MS);
    }
  } catch (error) {
    await file.close();
    throw error;
  }
  await file.close();
  return null;
}

/** A file that is locked from its creation on, for as long as it is open. */
export interface ClaimedFile {
  readonly path: string;
  /** Closing it ends the claim. Renaming it does not. */
  readonly file: FileHandle;
}

/** Creates a file with a new name that ends in `suffix`. */
export async function createClaimed(directory: string, suffix = ""): Promise<ClaimedFile> {
  for (;;) {
    const path = join(directory, randomUUID() + suffix);
    const file = await open(path, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL, 0o644);
    const held = await holds(file).catch(async (error) => {
      await file.close();
      throw error;
    });
    if (held) return { path, file };
    await file.close();
  }
}

/** Whether the file is locked for us, and still has a name: a sweep may have come between. */
async function holds(file: FileHandle): Promise<boolean> {
  return tryLock(file.fd) && (await file.stat()).nlink > 0;
}

/**
 * Calls `remove` with the path of every claimed file of the directory whose process has ended. It has to remove that
 * file, last; nobody else does so meanwhile. Only file names that end in `suffix` count. Returns the paths of those whose
 * process lives.
 */
export async function sweepClaimed(
  directory: string,
  suffix: string,
  remove: (path: string) => Promise<void>,
): Promise<string[]> {
  const living: string[] = [];
  for (const name of await readdir(directory)) {
    if (!name.endsWith(suffix)) continue;
    const path = join(directory, name);
    const file = await open(path, constants.O_RDWR | constants.O_NOFOLLOW).catch(() => undefined);
    try {
      if (file && (await holds(file))) await remove(path);
      else if (file) living.push(path);
    } finally {
      await file?.close();
    }
  }
  return living;
}
