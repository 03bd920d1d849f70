//! Reads Kafka's password from its file, and gives it to the lane's clients when it changes.

use super::Lane;
use crate::kafka::settings::{KafkaSettings, PASSWORD, USERNAME};
use crate::kafka::{Command, Credentials};

/// The file to read the password from.
pub(super) struct PasswordFile {
    settings: KafkaSettings,
    /// The problem with the file since the last good read, which the lane logs once.
    complaint: Option<String>,
}

impl PasswordFile {
    /// Returns `None` if the settings name no file.
    pub fn new(settings: &KafkaSettings) -> Option<PasswordFile> {
        settings.password_file.as_ref().map(|_| PasswordFile { settings: settings.clone(), complaint: None })
    }
}

impl Lane {
    /// Reads the file again. Open connections stay, and the next ones log in with the file's password.
    pub(super) fn look_at_password(&mut self) {
        let Some(file) = &mut self.password else { return };
        let properties = match file.settings.client_properties() {
            Ok(properties) => properties,
            Err(fault) => {
                if file.complaint.as_ref() != Some(&fault) {
                    tracing::warn!(destination = %self.id, "kafka.password_file {fault}; until then the last good password is used");
                    file.complaint = Some(fault);
                }
                return;
            }
        };
        file.complaint = None;
        if properties.get(PASSWORD) == self.consumer_settings.properties.get(PASSWORD) {
            return;
        }
        tracing::info!(destination = %self.id, "kafka.password_file has changed");
        let text = |key: &str| properties.get(key).cloned().unwrap_or_default();
        let credentials = Credentials { username: text(USERNAME), password: text(PASSWORD).into() };
        if let Err(fault) = self.producer.log_in_with(&credentials) {
            tracing::warn!(destination = %self.id, "the dead-letter producer does not take the new password: {fault}");
        }
        self.consumer.send(Command::Credentials(credentials));
        self.consumer_settings.properties = properties;
    }
}
