//! Guests of one boot sector, small enough to be assembled by hand.

const SECTOR_BYTES: usize = 512;
/// The sector is loaded at 0x7c00, so this is where its data begins for the code.
const LOAD_ADDRESS: u16 = 0x7c00;

/// A boot sector that writes `code` to the isa-debug-exit port at 0xf4: QEMU then exits with `2 * code + 1`.
#[must_use]
pub fn mbr_exit(code: u8) -> [u8; SECTOR_BYTES] {
    // mov al, code; mov dx, 0xf4; out dx, al; hlt; jmp to the hlt
    sector(&[0xb0, code, 0xba, 0xf4, 0x00, 0xee, 0xf4, 0xeb, 0xfd], b"")
}

/// A boot sector that writes `text` to COM1 and halts.
///
/// # Panics
/// When `text` doesn't fit into the sector.
#[must_use]
pub fn mbr_print(text: &str) -> [u8; SECTOR_BYTES] {
    const CODE_BYTES: u16 = 35;
    let [low, high] = (LOAD_ADDRESS + CODE_BYTES).to_le_bytes();
    #[rustfmt::skip]
    let code: [u8; CODE_BYTES as usize] = [
        0x31, 0xc0,             //  0        xor ax, ax
        0x8e, 0xd8,             //  2        mov ds, ax
        0xbe, low, high,        //  4        mov si, text
        0xfc,                   //  7        cld
        0xac,                   //  8 next:  lodsb
        0x84, 0xc0,             //  9        test al, al
        0x74, 0x11,             // 11        jz halt
        0x88, 0xc4,             // 13        mov ah, al
        0xba, 0xfd, 0x03,       // 15        mov dx, 0x3fd (line status)
        0xec,                   // 18 wait:  in al, dx
        0xa8, 0x20,             // 19        test al, 0x20 (transmitter empty)
        0x74, 0xfb,             // 21        jz wait
        0x88, 0xe0,             // 23        mov al, ah
        0xb2, 0xf8,             // 25        mov dl, 0xf8 (data)
        0xee,                   // 27        out dx, al
        0xeb, 0xea,             // 28        jmp next
        0xf4,                   // 30 halt:  hlt
        0xeb, 0xfd,             // 31        jmp halt
        0x90, 0x90,             // 33        nop; nop
    ];
    let mut data = text.as_bytes().to_vec();
    data.push(0);
    sector(&code, &data)
}

fn sector(code: &[u8], data: &[u8]) -> [u8; SECTOR_BYTES] {
    let mut sector = [0; SECTOR_BYTES];
    assert!(code.len() + data.len() <= SECTOR_BYTES - 2, "guest is larger than its boot sector");
    sector[..code.len()].copy_from_slice(code);
    sector[code.len()..code.len() + data.len()].copy_from_slice(data);
    sector[SECTOR_BYTES - 2..].copy_from_slice(&[0x55, 0xaa]);
    sector
}
