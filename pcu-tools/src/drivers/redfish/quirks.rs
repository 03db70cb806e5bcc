//! Where vendors do otherwise than the standard says, each with where that is known from. None was tried on hardware by us.

use super::service::Resource;

/// What is to be done differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Quirks {
    /// A boot override that does not say the mode puts it back to the default.
    /// Source: github.com/DMTF/Redfishtool/pull/106.
    pub(super) repeat_boot_mode: bool,
    /// Virtual media are a CD drive on USB, and `Cd` boots from nowhere.
    /// Source: OpenStack's sushy, `resources/system/system.py`.
    pub(super) cd_on_usb: bool,
}

/// One vendor's, for the models that are not excepted. Names in lower case.
struct Vendor {
    manufacturer: &'static str,
    except: &'static [&'static str],
    quirks: Quirks,
}

const VENDORS: [Vendor; 2] = [
    Vendor {
        manufacturer: "supermicro",
        except: &["ars-111gl-nhr"],
        quirks: Quirks { repeat_boot_mode: true, cd_on_usb: true },
    },
    Vendor { manufacturer: "supermicro", except: &[], quirks: Quirks { repeat_boot_mode: true, cd_on_usb: false } },
];

/// The quirks of a system, by who made it.
pub(super) fn of(system: &Resource) -> Quirks {
    let lower = |at: &str| system.text(at).unwrap_or_default().trim().to_ascii_lowercase();
    let (manufacturer, model) = (lower("/Manufacturer"), lower("/Model"));
    let mut fitting =
        VENDORS.iter().filter(|vendor| vendor.manufacturer == manufacturer && !vendor.except.contains(&model.as_str()));
    fitting.next().map(|vendor| vendor.quirks).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn vendors_are_known_by_name_and_model() {
        let check = |manufacturer: &str, model: &str, expected: Quirks| {
            let system = Resource::told("/1", json!({ "Manufacturer": manufacturer, "Model": model }));
            assert_eq!(of(&system), expected, "{manufacturer} {model}");
        };
        check("Supermicro", "SYS-1029", Quirks { repeat_boot_mode: true, cd_on_usb: true });
        check("Supermicro", "ARS-111GL-NHR", Quirks { repeat_boot_mode: true, cd_on_usb: false });
        check("Dell Inc.", "PowerEdge R650", Quirks::default());
        check("", "", Quirks::default());
    }
}
