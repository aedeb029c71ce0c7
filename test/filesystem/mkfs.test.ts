import { describe, expect, test } from "bun:test";
import { statSync } from "node:fs";
import { mkfs } from "../../src/filesystem/mkfs.ts";
import { fsckComplaint } from "../fixtures/loop.ts";
import { GIB, withDisk } from "./disk.ts";

describe("mkfs", () => {
  for (const size of [GIB, 10 * GIB, 64 * GIB, GIB + 12345 * 4096, 200 * 2 ** 20, 8 * 2 ** 20, 1000 * 4096]) {
    test(`a file system of ${size} bytes is clean, small and has no clock in it`, () => {
      const first = withDisk(size, (disk) => {
        disk.volume(mkfs);
        expect(fsckComplaint(disk.path)).toBeNull();
        expect(statSync(disk.path).blocks * 512).toBeLessThan(10 * 2 ** 20);
        expect(disk.paths()).toEqual([]);
        return disk.digest();
      });
      const second = withDisk(size, (disk) => {
        disk.volume(mkfs);
        return disk.digest();
      });
      expect(second).toBe(first);
    });
  }

  test("has the parameters of apply.md section 1", () => {
    withDisk(GIB, (disk) => {
      disk.volume(mkfs);
      const superblock = new DataView(new ArrayBuffer(4096));
      disk.volume((volume) => volume.read(0, new Uint8Array(superblock.buffer)));
      const u32 = (offset: number) => superblock.getUint32(1024 + offset, true);
      const u16 = (offset: number) => superblock.getUint16(1024 + offset, true);
      expect(u32(0)).toBe(65536); // inodes
      expect(u32(4)).toBe(262144); // blocks
      expect(u32(8)).toBe(13107); // reserved
      expect(u32(0x2c)).toBe(0); // mounted
      expect(u32(0x30)).toBe(0); // written
      expect(u16(0x36)).toBe(0xffff); // mounts allowed
      expect(u32(0x40)).toBe(0); // checked
      expect(u16(0x58)).toBe(256); // inode size
      expect(u32(0x5c)).toBe(0x238);
      expect(u32(0x60)).toBe(0x2c2);
      expect(u32(0x64)).toBe(0x6b);
      expect([...new Uint8Array(superblock.buffer, 1024 + 0x68, 16)]).toEqual(new Array(16).fill(0)); // UUID
      expect(u16(0xce)).toBe(127); // reserved GDT blocks
      expect(superblock.getUint8(1024 + 0xfc)).toBe(1); // half MD4
      expect(u16(0xfe)).toBe(64); // descriptor size
      expect(u32(0x108)).toBe(0); // made
      expect(u16(0x15c)).toBe(32);
      expect(u32(0x178)).toBe(1); // kilobytes written
      expect([u32(0x24c), u32(0x250)]).toEqual([1, 7]); // backups
    });
  });

  test("refuses what is too small", () => {
    withDisk(40 * 4096, (disk) => expect(() => disk.volume(mkfs)).toThrow(/does not suit/));
  });
});
