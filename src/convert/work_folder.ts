/** A directory for the temporary files of one conversion. */
import { mkdir, rm } from "node:fs/promises";
import { OverlaybdError } from "../error.ts";
import { type ClaimedFile, createClaimed, sweepClaimed } from "../native/lock.ts";

/** Ending of the lock file that lies beside each directory; it comes before the directory and goes after it. */
const SUFFIX = ".conversion";

export class WorkFolder {
  private constructor(
    readonly path: string,
    private readonly claim: ClaimedFile,
  ) {}

  /** Makes one in `parent`, and removes those of conversions that were killed. @throws OverlaybdError E_IO */
  static async create(parent: string): Promise<WorkFolder> {
    try {
      await mkdir(parent, { recursive: true });
      await sweepClaimed(parent, SUFFIX, removeAll);
      const claim = await createClaimed(parent, SUFFIX);
      const path = claim.path.slice(0, -SUFFIX.length);
      const folder = new WorkFolder(path, claim);
      await mkdir(path).catch(async (error) => {
        await folder.remove();
        throw error;
      });
      return folder;
    } catch (cause) {
      throw new OverlaybdError("E_IO", `cannot work in ${parent}: ${(cause as Error).message}`, { cause });
    }
  }

  /** Removes the directory and what is in it. */
  async remove(): Promise<void> {
    await removeAll(this.claim.path);
    await this.claim.file.close();
  }
}

async function removeAll(lock: string): Promise<void> {
  await rm(lock.slice(0, -SUFFIX.length), { recursive: true, force: true });
  await rm(lock, { force: true });
}
